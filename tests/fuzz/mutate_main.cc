// Runs a fuzz target without libFuzzer, so that every build and CI run does: first the files named
// on the command line, then a fixed number of inputs mutated from built-in seeds, the same for the
// same seed number. Prints the seed and the iteration before it runs nothing, and on a crash the
// input is written to the path given by --crash-file.
//
// usage: NAME [--iterations N] [--seed S] [--crash-file PATH] [FILE…]
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fileballoon/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;
using namespace fileballoon;

Input g_input;
std::uint64_t g_iteration = 0;
std::string g_crash_file;

extern "C" void report_crash(int) {
  std::fprintf(stderr, "input of iteration %llu, %zu bytes, goes to %s\n",
               static_cast<unsigned long long>(g_iteration), g_input.size(), g_crash_file.c_str());
  if (std::FILE* file = std::fopen(g_crash_file.c_str(), "wb")) {
    std::fwrite(g_input.data(), 1, g_input.size(), file);
    std::fclose(file);
  }
}

void run(const Input& input) {
  g_input = input;
  LLVMFuzzerTestOneInput(g_input.data(), g_input.size());
}

/// One valid stream with a frame of every type, of sizes that `random` chooses.
Input valid_stream(std::mt19937_64& random) {
  std::vector<std::byte> out;
  wire::Header header;
  header.from = random();
  header.to = random();
  wire::Hello hello;
  hello.ram.assign(random() % 4, {GuestFrame(random() % 100), random() % 1000});
  wire::encode(header, hello, out);
  const auto ranges = [&random](std::uint64_t most_frames) {
    std::vector<FrameRange> result(random() % 20);
    for (FrameRange& range : result) {
      range = {GuestFrame(random()), 1 + random() % most_frames};
    }
    return result;
  };
  for (std::uint64_t n = random() % 8; n > 0; --n) {
    ++header.sequence;
    switch (random() % 11) {
      case 0:
        wire::encode(header, wire::Report{ranges(500)}, out);
        break;
      case 1:
        wire::encode(header, wire::Ack{random(), {random() % 20, wire::RangeOutcome{1, 2, 3, 4}}},
                     out);
        break;
      case 2:
        wire::encode(header, wire::Deflated{Bytes(random()), ranges(1ULL << 32)}, out);
        break;
      case 3:
        wire::encode(header, wire::Stats{{{wire::StatKey::oom_kills, random()}}}, out);
        break;
      case 4:
        wire::encode(header, wire::LimitsMessage{{Bytes(random()), Bytes(random())}, 1}, out);
        break;
      case 5:
        wire::encode(header, wire::ErrorMessage{wire::ErrorCode::other, "text\x01\xff"}, out);
        break;
      case 6:
        wire::encode(header, wire::CacheOrder{static_cast<CacheMode>(random() % 6)}, out);
        break;
      case 7:
        wire::encode(header, wire::Populate{ranges(500)}, out);
        break;
      case 8:
        wire::encode(header,
                     wire::Populated{random(), std::vector<std::uint32_t>(random() % 20, 7)}, out);
        break;
      case 9:
        wire::encode(header, wire::HostState{Bytes(random())}, out);
        break;
      default:
        wire::encode(header, wire::Purge{Bytes(random())}, out);
    }
  }
  Input input(out.size());
  std::memcpy(input.data(), out.data(), out.size());
  return input;
}

/// Values that lengths and counts are wrong at.
constexpr std::uint32_t kEdges[] = {0,      1,       0x7f,    0x80,       0xff,       255 * 256,
                                    0xffff, 0x10000, 0x10001, 0x7fffffff, 0x80000000, 0xffffffff,
                                    4096,   4097,    16384,   16385,      512,        513};

void mutate(Input& input, std::mt19937_64& random) {
  const auto at = [&] { return random() % input.size(); };
  for (std::uint64_t n = 1 + random() % 6; n > 0 && !input.empty(); --n) {
    switch (random() % 7) {
      case 0:
        input[at()] ^= static_cast<std::uint8_t>(1U << (random() % 8));
        break;
      case 1:
        input[at()] = static_cast<std::uint8_t>(random());
        break;
      case 2:
        input.resize(at());
        break;
      case 3: {  // an edge value, where a length may be
        const std::uint32_t value = kEdges[random() % std::size(kEdges)];
        const std::size_t where = at();
        std::memcpy(input.data() + where, &value, std::min(sizeof value, input.size() - where));
        break;
      }
      case 4: {  // a piece, doubled
        const std::size_t from = at();
        const std::size_t count = std::min<std::size_t>(random() % 200, input.size() - from);
        const Input piece(input.begin() + static_cast<std::ptrdiff_t>(from),
                          input.begin() + static_cast<std::ptrdiff_t>(from + count));
        const auto where = static_cast<std::ptrdiff_t>(at());
        input.insert(input.begin() + where, piece.begin(), piece.end());
        break;
      }
      case 5: {  // a piece, gone
        const std::size_t from = at();
        const std::size_t count = std::min<std::size_t>(random() % 60, input.size() - from);
        input.erase(input.begin() + static_cast<std::ptrdiff_t>(from),
                    input.begin() + static_cast<std::ptrdiff_t>(from + count));
        break;
      }
      default: {  // another stream behind it
        const Input more = valid_stream(random);
        input.insert(input.end(), more.begin(), more.end());
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t iterations = 20000;
  std::uint64_t seed = 1;
  g_crash_file = std::string(argv[0]) + ".crash";
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool has_value = i + 1 < argc;
    if (argument == "--iterations" && has_value) {
      iterations = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--seed" && has_value) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--crash-file" && has_value) {
      g_crash_file = argv[++i];
    } else {
      files.push_back(argument);
    }
  }
  std::signal(SIGABRT, report_crash);  // sanitizers abort, too, with abort_on_error
  std::signal(SIGSEGV, [](int) {
    report_crash(0);
    std::_Exit(1);
  });
  for (const std::string& name : files) {
    std::ifstream file(name, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read '%s'\n", name.c_str());
      return 1;
    }
    run(Input(std::istreambuf_iterator<char>(file), {}));
  }
  std::printf("%zu files, then %llu mutated inputs from seed %llu\n", files.size(),
              static_cast<unsigned long long>(iterations), static_cast<unsigned long long>(seed));
  for (g_iteration = 0; g_iteration < iterations; ++g_iteration) {
    std::mt19937_64 random(seed * 1'000'003 + g_iteration);
    Input input = valid_stream(random);
    if (g_iteration % 10 != 0) {
      mutate(input, random);
    }
    run(input);
  }
  return 0;
}
