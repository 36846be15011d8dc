// Sections with every word set to edge values, with random damage, and cut at every length, all with checksums that fit:
// each is refused in words or runs. To be seen by a sanitizer; without one, crashes, hangs and greed still show.
#include <sys/resource.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "check.h"

namespace {

uint32_t crc32(const Buffer& bytes) {
  uint32_t rest = ~0u;
  for (uint8_t byte : bytes) {
    rest ^= byte;
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ ((rest & 1) != 0 ? 0xEDB88320u : 0);
  }
  return ~rest;
}

uint32_t word_at(const Buffer& bytes, size_t at) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + at, 4);
  return word;
}

void append(Buffer& bytes, uint32_t word) {
  const auto* from = reinterpret_cast<const uint8_t*>(&word);
  bytes.insert(bytes.end(), from, from + 4);
}

using Words = std::vector<uint32_t>;
// Of the head: the size of the data and their checksum.
constexpr size_t kDataBytes = 4, kDataChecksum = 6;

// A file's section less its foot, and the data before it.
struct Taken {
  Words words;
  Buffer data;
};

Taken take(const Buffer& file) {
  const size_t section = word_at(file, file.size() - 16), header = word_at(file, 0);
  Taken taken;
  for (size_t at = file.size() - section; at < file.size() - 16; at += 4) taken.words.push_back(word_at(file, at));
  taken.data.assign(file.begin() + 8 + static_cast<int64_t>(header), file.end() - static_cast<int64_t>(section));
  return taken;
}

Buffer file_of(const Words& words, const Buffer& data, bool seal_data) {
  Words head = words;
  if (seal_data && head.size() > kDataChecksum) {
    head[kDataBytes] = static_cast<uint32_t>(data.size());
    head[kDataBytes + 1] = 0;
    head[kDataChecksum] = crc32(data);
  }
  Buffer section;
  for (uint32_t word : head) append(section, word);
  append(section, static_cast<uint32_t>(section.size() + 16));
  append(section, crc32(section));
  const char magic[] = "pq\0prog\n";
  section.insert(section.end(), magic, magic + 8);
  Buffer file = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
  file.insert(file.end(), data.begin(), data.end());
  file.insert(file.end(), section.begin(), section.end());
  return file;
}

class Fuzz {
 public:
  explicit Fuzz(uint32_t seed) : random_(seed) {
    std::istringstream names(pq_isas());
    for (std::string name; std::getline(names, name, ',');) isas_.push_back(name);
  }
  long loaded = 0, refused = 0, ran = 0;

  void file(const char* path, int rounds) {
    const Buffer whole = read_file(path);
    const Taken base = take(whole);
    const long before = ran;
    attempt(file_of(base.words, base.data, true));
    CHECK(ran == before + 1);
    for (size_t at = 0; at < base.words.size(); ++at) {
      for (uint32_t value : edges(base.words, at)) {
        Words words = base.words;
        words[at] = value;
        // A head that says other sizes or checksums is to be believed by nobody.
        attempt(file_of(words, base.data, at < kDataBytes || at > kDataChecksum));
      }
      Words shorter = base.words, longer = base.words;
      shorter.erase(shorter.begin() + static_cast<int64_t>(at));
      attempt(file_of(shorter, base.data, true));
      longer.insert(longer.begin() + static_cast<int64_t>(at), base.words[pick(base.words.size())]);
      attempt(file_of(longer, base.data, true));
      attempt(file_of(Words(base.words.begin(), base.words.begin() + static_cast<int64_t>(at)), base.data, true));
    }
    for (int round = 0; round < rounds; ++round) {
      Words words = base.words;
      Buffer data = base.data;
      for (size_t change = 0; change <= pick(3); ++change) {
        const size_t at = pick(words.size());
        const Words values = edges(words, at);
        words[at] = round % 2 == 0 ? words[at] ^ 1u << pick(32) : values[pick(values.size())];
      }
      for (size_t change = 0; round % 3 == 0 && !data.empty() && change <= pick(4); ++change) {
        data[pick(data.size())] ^= static_cast<uint8_t>(1u << pick(8));
      }
      if (round % 11 == 0) data.resize(pick(data.size() + 1));
      attempt(file_of(words, data, true));
    }
    for (size_t length = 0; length < whole.size(); length += 1 + whole.size() / 997) {
      attempt(Buffer(whole.begin(), whole.begin() + static_cast<int64_t>(length)));
    }
  }

 private:
  size_t pick(size_t count) { return random_() % count; }

  Words edges(const Words& words, size_t at) {
    const uint32_t now = words[at];
    Words values = {0, 1, 2, 3, 4, 7, 8, 9, 127, 128, 255, 256, 0x3FFF, 0x4000, 0x7FFF, 0xFFFF, 0x10000, 0x10001,
                    0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x3F800000, 0x7F800000, 0x7FC00000,
                    0xBF800000, 0x00800000, 0x7F7FFFFF, now + 1, now - 1, now * 2, now / 2, ~now, now + 0x10000};
    values.push_back(words[pick(words.size())]);
    return values;
  }

  void attempt(const Buffer& file) {
    // On the heap to the byte, so that reading behind it is seen.
    const Buffer bytes(file.begin(), file.end());
    pq_program* program;
    const char* isa = isas_[static_cast<size_t>(loaded + refused) % isas_.size()].c_str();
    const pq_status status = pq_load_memory(bytes.empty() ? "" : static_cast<const void*>(bytes.data()), bytes.size(),
                                            isa, &program);
    if (status != PQ_OK) {
      CHECK(program == nullptr);
      CHECK(status == PQ_BAD_PROGRAM);
      CHECK(std::strlen(pq_last_error()) > 10);
      ++refused;
      return;
    }
    ++loaded;
    const Loaded owner(program);
    constexpr int64_t kBatch = 2;
    int64_t work = pq_run_memory(program, kBatch, 2);
    for (int i = 0; i < pq_input_count(program) + pq_output_count(program); ++i) {
      pq_tensor tensor;
      const bool in = i < pq_input_count(program);
      CHECK((in ? pq_input(program, i, &tensor) : pq_output(program, i - pq_input_count(program), &tensor)) == PQ_OK);
      work += kBatch * 4 * tensor.elements;
    }
    CHECK(work > 0);
    // What would take gigabytes is the caller's choice; here it would only take time.
    if (work > 1 << 20) return;
    Tensors outputs = outputs_of(program, kBatch);
    CHECK(run(program, kBatch, inputs_of(program, kBatch), outputs, 1 + static_cast<int>(ran % 2)) == PQ_OK);
    ++ran;
  }

  std::mt19937 random_;
  std::vector<std::string> isas_;  // one after the other
};

}  // namespace

int main(int count, char** arguments) {
  CHECK(count > 3);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // To load a program takes no more than its size allows, whatever it says.
  const rlimit most = {1u << 30, 1u << 30};
  CHECK(setrlimit(RLIMIT_AS, &most) == 0);
#endif
  alarm(static_cast<unsigned>(std::atoi(arguments[1])));
  Fuzz fuzz(2006);
  for (int file = 3; file < count; ++file) fuzz.file(arguments[file], std::atoi(arguments[2]));
  CHECK(fuzz.refused > fuzz.ran && fuzz.ran > 10);
  std::printf("refused %ld, loaded %ld, ran %ld\n", fuzz.refused, fuzz.loaded, fuzz.ran);
}
