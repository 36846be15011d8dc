// Runs saved networks on given inputs: `run_files FILE.pq...` reads FILE.pq.in, all inputs of a batch one after the other,
// and writes FILE.pq.out. One thread and three have to give the same bytes.
#include <string>

#include "check.h"

int main(int count, char** paths) {
  CHECK(count > 1);
  for (int file = 1; file < count; ++file) {
    const Loaded program = load(paths[file]);
    const Buffer given = read_file((std::string(paths[file]) + ".in").c_str());
    size_t sample = 0;
    for (const Buffer& input : inputs_of(program.get(), 1).bytes) sample += input.size();
    CHECK(sample > 0 && given.size() % sample == 0);
    const int64_t batch = static_cast<int64_t>(given.size() / sample);
    Tensors inputs = inputs_of(program.get(), batch);
    size_t at = 0;
    for (Buffer& input : inputs.bytes) {
      std::memcpy(input.data(), given.data() + at, input.size());
      at += input.size();
    }
    Tensors once = outputs_of(program.get(), batch), again = outputs_of(program.get(), batch);
    CHECK(run(program.get(), batch, inputs, once, 1) == PQ_OK);
    CHECK(run(program.get(), batch, inputs, again, 3) == PQ_OK);
    CHECK(once.bytes == again.bytes);
    std::FILE* results = std::fopen((std::string(paths[file]) + ".out").c_str(), "wb");
    CHECK(results != nullptr);
    for (const Buffer& output : once.bytes) CHECK(std::fwrite(output.data(), 1, output.size(), results) == output.size());
    CHECK(std::fclose(results) == 0);
  }
  std::printf("%s fine\n", pq_isas());
}
