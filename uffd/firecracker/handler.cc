#include "uffd/firecracker/handler.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace fileballoon::firecracker {
namespace {

// Firecracker sends at once; a peer that does not is not Firecracker.
constexpr int kHandshakeMs = 2000;

}  // namespace

Result<std::unique_ptr<SnapshotSource>> SnapshotSource::open(const std::string& path,
                                                             const std::vector<Region>& regions) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat st {};
  if (!fd.valid() || ::fstat(fd.get(), &st) != 0) {
    return Error{"cannot open the memory file " + path + ": " + std::strerror(errno)};
  }
  std::vector<std::uint64_t> offsets;
  for (const Region& region : regions) {
    if (region.offset + region.size > static_cast<std::uint64_t>(st.st_size)) {
      return Error{"the memory file " + path + " is shorter (" + std::to_string(st.st_size) +
                   " bytes) than the regions of the handshake"};
    }
    offsets.push_back(region.offset);
  }
  const auto size = static_cast<std::size_t>(st.st_size);
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (base == MAP_FAILED) {
    return Error{"cannot map the memory file " + path + ": " + std::strerror(errno)};
  }
  return std::unique_ptr<SnapshotSource>(new SnapshotSource(base, size, std::move(offsets)));
}

SnapshotSource::~SnapshotSource() { ::munmap(base_, size_); }

PageSource::Content SnapshotSource::fetch(std::uint32_t object, std::uint64_t first,
                                          std::uint32_t count, std::uint64_t /*fault*/) {
  const auto* data = static_cast<const std::byte*>(base_) + offsets_[object] + first * kPageSize;
  return {Content::Status::ready, data, first, count};
}

Result<Listener> Listener::listen(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return Error{"the socket path " + path + " is longer than a UNIX socket's may be"};
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::unlink(path.c_str());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(fd.get(), 4) != 0) {
    return Error{"cannot listen on " + path + ": " + std::strerror(errno)};
  }
  return Listener(std::move(fd), path);
}

Listener::~Listener() {
  if (fd_.valid()) {
    ::unlink(path_.c_str());
  }
}

Result<UniqueFd> Listener::accept(std::chrono::milliseconds timeout) const {
  pollfd polled{fd_.get(), POLLIN, 0};
  if (::poll(&polled, 1, static_cast<int>(timeout.count())) <= 0) {
    return Error{"no VM connected to " + path_ + " in time"};
  }
  UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    return Error{"cannot accept on " + path_ + ": " + std::strerror(errno)};
  }
  return fd;
}

Result<std::unique_ptr<Handler>> Handler::start(UniqueFd socket, const std::string& memory_file) {
  auto handshake = receive_handshake(socket.get(), kHandshakeMs);
  if (handshake.has_error()) {
    return handshake.error();
  }
  std::unique_ptr<Handler> handler(new Handler());
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return Error{std::string("cannot tell who connected: ") + std::strerror(errno)};
  }
  handler->pid_ = peer.pid;
  handler->pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!handler->pidfd_.valid()) {
    return Error{"pid " + std::to_string(peer.pid) + ", which connected, has exited"};
  }
  WatchedRam::Options options;
  options.registered = true;
  options.write_protect = false;
  options.initial = FrameState::absent;
  if (!memory_file.empty()) {
    auto source = SnapshotSource::open(memory_file, handshake->regions);
    if (source.has_error()) {
      return source.error();
    }
    handler->source_ = std::move(*source);
    options.initial = FrameState::paged;
  }
  std::vector<RamObject> objects;
  for (const Region& region : handshake->regions) {
    RamObject object;
    object.size = Bytes(region.size);
    object.mappings = {{region.base_host_virt_addr, {HostOffset(0), object.size}}};
    objects.push_back(std::move(object));
  }
  std::vector<Userfaultfd> shards;
  shards.push_back(std::move(handshake->uffd));
  auto ram = WatchedRam::create(std::move(objects), std::move(shards), options);
  if (ram.has_error()) {
    return ram.error();
  }
  handler->ram_ = std::move(*ram);
  handler->engine_ =
      std::make_unique<FaultEngine>(*handler->ram_, FaultEngine::Options{}, handler->source_.get());
  handler->socket_ = std::move(socket);
  return handler;
}

std::string Handler::wait(std::chrono::milliseconds timeout) {
  pollfd polled[2] = {{pidfd_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
  if (::poll(polled, 2, static_cast<int>(timeout.count())) <= 0) {
    return {};
  }
  if (polled[0].revents != 0) {
    return "pid " + std::to_string(pid_) + " has exited";
  }
  std::array<char, 256> data;
  const ssize_t got = ::recv(socket_.get(), data.data(), data.size(), MSG_DONTWAIT);
  socket_.reset();  // Firecracker closes it when it likes; nothing more is expected on it
  return got > 0 ? "a second message came after the handshake; it is ignored" : std::string();
}

}  // namespace fileballoon::firecracker
