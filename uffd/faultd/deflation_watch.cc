#include "uffd/faultd/deflation_watch.h"

#include "uffd/faultd/protocol.h"

namespace fileballoon::faultd {

Result<DeflationWatch> DeflationWatch::connect(const std::string& socket) {
  auto fd = connect_keeper(socket);
  if (fd.has_error()) {
    return fd.error();
  }
  return DeflationWatch(std::move(*fd));
}

bool DeflationWatch::ask(std::chrono::milliseconds at_latest) {
  Request request;
  request.operation = Operation::deflation;
  request.start = known_.value_or(0);
  request.timeout_ms = known_ ? static_cast<std::uint32_t>(at_latest.count()) : 0;
  return send_packet(fd_.get(), request, MSG_DONTWAIT);
}

Result<std::uint64_t> DeflationWatch::take() {
  DeflationReply reply;
  if (receive_packet(fd_.get(), reply, std::chrono::milliseconds(0)) != Received::packet) {
    return Error{"the fault keeper went away"};
  }
  const std::uint64_t more = reply.pages - known_.value_or(reply.pages);  // before is history
  known_ = reply.pages;
  return more;
}

}  // namespace fileballoon::faultd
