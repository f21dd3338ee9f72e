// DeflationWatch: tells a daemon at once when a guest takes memory back from its balloon, by a
// connection of its own to the VM's fault keeper. It never blocks: ask(), wait until fd() is
// readable in whatever way the daemon waits, then take(). One thread at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "uffd/faultd/packet_socket.h"

namespace fileballoon::faultd {

class DeflationWatch {
 public:
  /// To the keeper that listens on `socket` (FaultdClient::Options::socket). One that hangs does
  /// not show here, but in an ask() that is not answered.
  [[nodiscard]] static Result<DeflationWatch> connect(const std::string& socket);

  /// Asks for an answer as soon as more pages than told so far have come back, or after
  /// `at_latest`; the first time for where it stands, answered at once. False: the keeper is gone,
  /// connect anew.
  [[nodiscard]] bool ask(std::chrono::milliseconds at_latest);
  /// The answer: how many pages have come back since the last one, which is 0 for the first. A
  /// keeper counts from its own start, so nothing is counted twice, and what came back while it was
  /// being replaced is not counted. An error says that the keeper is gone.
  [[nodiscard]] Result<std::uint64_t> take();

  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  explicit DeflationWatch(UniqueFd fd) : fd_(std::move(fd)) {}

  UniqueFd fd_;
  std::optional<std::uint64_t> known_;  // none before the first answer
};

}  // namespace fileballoon::faultd
