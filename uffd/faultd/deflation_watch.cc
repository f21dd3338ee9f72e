#include "uffd/faultd/deflation_watch.h"

#include "uffd/faultd/protocol.h"

namespace fileballoon::faultd {

Result<DeflationWatch> DeflationWatch::connect(const std::string& socket) {
  auto fd = connect_keeper(socket);
  if (fd.has_error()) {
    return fd.error();
  }
  DeflationWatch watch(std::move(*fd));
  // What came back before is history.
  if (!watch.ask(std::chrono::milliseconds(0))) {
    return Error{"the fault keeper on " + socket + " went away"};
  }
  DeflationReply reply;
  if (receive_packet(watch.fd(), reply, std::chrono::seconds(1)) != Received::packet) {
    return Error{"the fault keeper on " + socket + " gave no answer"};
  }
  watch.known_ = reply.pages;
  return watch;
}

bool DeflationWatch::ask(std::chrono::milliseconds at_latest) {
  Request request;
  request.operation = Operation::deflation;
  request.start = known_;
  request.timeout_ms = static_cast<std::uint32_t>(at_latest.count());
  return send_packet(fd_.get(), request, MSG_DONTWAIT);
}

Result<std::uint64_t> DeflationWatch::take() {
  DeflationReply reply;
  if (receive_packet(fd_.get(), reply, std::chrono::milliseconds(0)) != Received::packet) {
    return Error{"the fault keeper went away"};
  }
  const std::uint64_t more = reply.pages - known_;
  known_ = reply.pages;
  return more;
}

}  // namespace fileballoon::faultd
