// Fuzz target for the wire decoder: the only code of the host that reads bytes a guest chose.
// Properties, beside what the sanitizers see: the decoder never holds more than one frame; what it
// accepts can be encoded again and decoded to the same bytes; how a stream is cut into reads makes
// no difference. Linked with libFuzzer (clang, -DFILEBALLOON_LIBFUZZER=ON) or with mutate_main.cc.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fileballoon/wire.h"

namespace {

using namespace fileballoon::wire;

void require(bool condition, const char* what) {
  if (!condition) {
    std::fprintf(stderr, "wire_fuzz: %s\n", what);
    std::abort();
  }
}

/// Runs `bytes` through a decoder in reads of `step`, and returns every frame encoded again.
/// Decoding starts anew after each error, as the daemon does.
std::vector<std::byte> reencode(std::span<const std::byte> bytes, std::size_t step,
                                std::size_t& frames) {
  std::vector<std::byte> out;
  Decoder decoder;
  while (!bytes.empty()) {
    const std::size_t taken = decoder.feed(bytes.first(std::min(step, bytes.size())));
    require(taken > 0, "a decoder with nothing more to give takes no bytes: a stall");
    bytes = bytes.subspan(taken);
    std::size_t from_one_buffer = 0;
    while (const auto item = decoder.next()) {
      const auto* frame = std::get_if<Frame>(&*item);
      if (frame == nullptr) {
        require(!std::get<DecodeError>(*item).text.empty(), "an error without a reason");
        return out;
      }
      require(++from_one_buffer <= (kHeaderSize + kMaxPayload) / kHeaderSize,
              "more frames than a full buffer can hold");
      require(frame->header.length <= kMaxPayload, "a length above the bound");
      ++frames;
      if (std::holds_alternative<Unknown>(frame->message)) {
        continue;  // its payload is skipped, so there is nothing to encode
      }
      encode(frame->header, frame->message, out);
    }
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  std::size_t frames = 0;
  const std::vector<std::byte> once = reencode(bytes, ~std::size_t{0}, frames);
  std::size_t frames_in_pieces = 0;
  const std::vector<std::byte> in_pieces = reencode(bytes, 13, frames_in_pieces);
  require(frames == frames_in_pieces && once == in_pieces,
          "cutting the stream changed its meaning");
  std::size_t frames_again = 0;
  if (!once.empty()) {
    std::vector<std::byte> stream;
    Header header;
    header.from = 1;
    encode(header, Hello{}, stream);  // an Unknown may have been first
    const std::size_t prefix = stream.size();
    stream.insert(stream.end(), once.begin(), once.end());
    const std::vector<std::byte> twice = reencode(stream, ~std::size_t{0}, frames_again);
    require(twice.size() == stream.size() &&
                std::equal(twice.begin() + static_cast<std::ptrdiff_t>(prefix), twice.end(),
                           once.begin()),
            "what was decoded does not encode to itself");
  }
  return 0;
}
