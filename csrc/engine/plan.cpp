#include "engine/plan.h"

#include <algorithm>

namespace pyquant {
namespace {

// What a step should read and write at most: half of a small second-level cache; the weights want room too. Measured on
// 2 MiB: with twice as much ResNet-50 takes a tenth longer, with six times a third.
constexpr int64_t kCacheBytes = 1 << 19;
// Steps that want at least so many times their stage's images begin a new one.
constexpr int64_t kWorthAStage = 4;
constexpr int64_t kMostImages = 16;

struct Life {
  int value;
  int64_t born, dies;  // steps; -1 and the number of steps for what the caller gives and takes
};

int root_of(const std::vector<Value>& values, int v) {
  while (values[v].alias >= 0) v = values[v].alias;
  return v;
}

std::vector<Life> lives_of(const std::vector<Value>& values, const std::vector<std::unique_ptr<Step>>& steps,
                           const std::vector<int>& inputs, const std::vector<int>& outputs) {
  const int64_t end = static_cast<int64_t>(steps.size());
  std::vector<Life> lives(values.size());
  for (int v = 0; v < static_cast<int>(values.size()); ++v) lives[v] = {v, end, -1};
  const auto use = [&](int v, int64_t when) {
    Life& life = lives[root_of(values, v)];
    life.born = std::min(life.born, when);
    life.dies = std::max(life.dies, when);
  };
  for (int v : inputs) use(v, -1);
  for (int64_t s = 0; s < end; ++s) {
    for (int v : steps[s]->inputs) use(v, s);
    use(steps[s]->output, s);
  }
  for (int v : outputs) use(v, end);
  return lives;
}

std::vector<Stage> stages_of(const std::vector<Value>& values, const std::vector<std::unique_ptr<Step>>& steps) {
  std::vector<Stage> stages;
  for (int64_t s = 0; s < static_cast<int64_t>(steps.size()); ++s) {
    int64_t bytes = values[steps[s]->output].image_stride;
    for (int v : steps[s]->inputs) bytes += values[v].image_stride;
    const int64_t wanted = std::clamp<int64_t>(kCacheBytes / bytes, 1, kMostImages);
    const bool fits = !stages.empty() && wanted < kWorthAStage * stages.back().images &&
                      kWorthAStage * wanted > stages.back().images;
    if (!fits) stages.push_back({s, s, wanted});
    stages.back().end = s + 1;
    stages.back().images = std::min(stages.back().images, wanted);
  }
  return stages;
}

// A value that outlives a stage lives in all of each stage that it touches: later images pass through the stage's first
// step when earlier ones have left its last.
Life over_stages(Life life, const std::vector<Stage>& stages) {
  const Life exact = life;
  for (const Stage& stage : stages) {
    if (stage.begin <= exact.born && exact.born < stage.end) life.born = stage.begin;
    if (stage.begin <= exact.dies && exact.dies < stage.end) life.dies = stage.end - 1;
  }
  return life;
}

// First fit by lifetime: a value takes the lowest gap that no living value overlaps. Returns the bytes that all take.
int64_t place(std::vector<Value>& values, std::vector<Life> lives, int64_t images) {
  std::stable_sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.born < b.born; });
  std::vector<Life> placed;  // lowest first
  int64_t bytes = 0;
  for (const Life& life : lives) {
    const int64_t size = values[life.value].image_stride * images;
    int64_t offset = 0;
    for (const Life& other : placed) {
      if (other.dies < life.born || other.born > life.dies) continue;
      const Value& there = values[other.value];
      if (offset + size <= there.arena_offset) break;
      offset = std::max(offset, there.arena_offset + there.image_stride * images);
    }
    values[life.value].arena_offset = offset;
    bytes = std::max(bytes, offset + size);
    const auto higher = [&](int64_t at, const Life& other) { return at < values[other.value].arena_offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, higher), life);
  }
  return bytes;
}

}  // namespace

Plan plan(std::vector<Value>& values, const std::vector<std::unique_ptr<Step>>& steps, const std::vector<int>& inputs,
          const std::vector<int>& outputs) {
  Plan plan;
  plan.stages = stages_of(values, steps);
  const auto inside = [&](const Life& life) { return life.dies >= life.born && !values[life.value].outside; };
  std::vector<Life> longer;
  std::vector<std::vector<Life>> within(plan.stages.size());
  for (const Life& life : lives_of(values, steps, inputs, outputs)) {
    if (!inside(life)) continue;
    const auto at = std::find_if(plan.stages.begin(), plan.stages.end(), [&](const Stage& stage) {
      return stage.begin <= life.born && life.dies < stage.end;
    });
    values[life.value].in_stage = at != plan.stages.end();
    if (at == plan.stages.end()) {
      longer.push_back(over_stages(life, plan.stages));
    } else {
      within[static_cast<size_t>(at - plan.stages.begin())].push_back(life);
    }
  }
  plan.batch_bytes = place(values, longer, 1);
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    plan.stage_bytes = std::max(plan.stage_bytes, place(values, within[i], plan.stages[i].images));
  }
  for (int v = 0; v < static_cast<int>(values.size()); ++v) {
    const Value& root = values[root_of(values, v)];
    values[v].arena_offset = root.arena_offset;
    values[v].in_stage = root.in_stage;
  }
  return plan;
}

}  // namespace pyquant
