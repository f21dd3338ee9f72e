#include "uffd/firecracker/handshake.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/json/parse.hpp>
#include <boost/json/stream_parser.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>

namespace fileballoon::firecracker {
namespace {

namespace json = boost::json;

// A field that must be there and be a whole number that fits.
std::optional<std::uint64_t> number(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* whole = value->if_uint64()) {
    return *whole;
  }
  if (const auto* whole = value->if_int64(); whole != nullptr && *whole >= 0) {
    return static_cast<std::uint64_t>(*whole);
  }
  return std::nullopt;
}

Error bad(std::size_t index, const std::string& what) {
  return Error{"handshake: region " + std::to_string(index) + " " + what};
}

// Descriptors that came with a message, owned at once so that none leaks.
std::vector<UniqueFd> take_descriptors(msghdr& message) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

}  // namespace

Result<std::vector<Region>> parse_regions(std::string_view text) {
  boost::system::error_code error;
  const json::value parsed = json::parse(json::string_view(text.data(), text.size()), error);
  if (error || !parsed.is_array()) {
    return Error{"handshake: not a JSON array of memory regions" +
                 (error ? ": " + error.message() : std::string())};
  }
  const json::array& array = parsed.get_array();
  if (array.empty() || array.size() > kMaxRegions) {
    return Error{"handshake: " + std::to_string(array.size()) + " regions; 1 to " +
                 std::to_string(kMaxRegions) + " are served"};
  }
  std::vector<Region> regions;
  for (std::size_t i = 0; i < array.size(); ++i) {
    const json::object* object = array[i].if_object();
    if (object == nullptr) {
      return bad(i, "is not an object");
    }
    const auto address = number(*object, "base_host_virt_addr");
    const auto size = number(*object, "size");
    const auto offset = number(*object, "offset");
    // Older versions sent the page size, in bytes, under the other name only.
    auto page_size = number(*object, "page_size");
    if (!page_size) {
      page_size = number(*object, "page_size_kib");
    }
    if (!address || !size || !offset || !page_size) {
      return bad(i, "lacks base_host_virt_addr, size, offset or page_size as a whole number");
    }
    if (*page_size != kPageSize) {
      return bad(i, "has pages of " + std::to_string(*page_size) +
                        " bytes; only 4096 are served (no hugetlbfs)");
    }
    if (*size == 0 || *address % kPageSize != 0 || *size % kPageSize != 0 ||
        *offset % kPageSize != 0) {
      return bad(i, "is empty or not aligned to pages");
    }
    if (*address + *size < *address || *offset + *size < *offset) {
      return bad(i, "wraps around the end of the address space");
    }
    regions.push_back({*address, *size, *offset, *page_size});
  }
  std::sort(regions.begin(), regions.end(), [](const Region& a, const Region& b) {
    return a.base_host_virt_addr < b.base_host_virt_addr;
  });
  for (std::size_t i = 1; i < regions.size(); ++i) {
    if (regions[i - 1].base_host_virt_addr + regions[i - 1].size > regions[i].base_host_virt_addr) {
      return Error{"handshake: two regions overlap"};
    }
  }
  return regions;
}

Result<Handshake> receive_handshake(int socket, int timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  std::string text;
  std::vector<UniqueFd> descriptors;
  json::stream_parser parser;
  while (!parser.done()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd polled{socket, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&polled, 1, static_cast<int>(left.count())) <= 0) {
      return Error{"handshake: no whole message came in time (" + std::to_string(text.size()) +
                   " bytes so far)"};
    }
    std::array<char, 8192> data;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(16 * sizeof(int))> control{};
    iovec part{data.data(), data.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    for (UniqueFd& fd : take_descriptors(message)) {
      descriptors.push_back(std::move(fd));
    }
    if (got <= 0) {
      return Error{"handshake: the peer closed after " + std::to_string(text.size()) + " bytes"};
    }
    text.append(data.data(), static_cast<std::size_t>(got));
    boost::system::error_code error;
    const std::size_t used = parser.write_some(data.data(), static_cast<std::size_t>(got), error);
    if (error) {
      return Error{"handshake: bad JSON: " + error.message()};
    }
    const bool rest_is_space = std::all_of(data.data() + used, data.data() + got, [](char c) {
      return c == ' ' || c == '\n' || c == '\r' || c == '\t';
    });
    if (!rest_is_space) {
      return Error{"handshake: a second message followed the first; there is only one"};
    }
    if (text.size() > kMaxMessage) {
      return Error{"handshake: longer than " + std::to_string(kMaxMessage) + " bytes"};
    }
  }
  if (descriptors.size() != 1) {
    return Error{"handshake: " + std::to_string(descriptors.size()) +
                 " file descriptors came with it; it must be one, the userfaultfd"};
  }
  auto regions = parse_regions(text);
  if (regions.has_error()) {
    return regions.error();
  }
  auto uffd = Userfaultfd::adopt(std::move(descriptors[0]), UffdFeature::event_remove);
  if (uffd.has_error()) {
    return Error{"handshake: " + uffd.error().message};
  }
  return Handshake{std::move(*regions), std::move(*uffd)};
}

}  // namespace fileballoon::firecracker
