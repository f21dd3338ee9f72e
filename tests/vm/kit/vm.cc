#include "tests/vm/kit/vm.h"

#include <algorithm>
#include <iostream>
#include <stdexcept>

#include "tests/eventually.h"

namespace fileballoon::vmkit {
namespace {

// A boot takes 2–6 s under TCG on an idle machine; this is for a machine that is not.
constexpr auto kBootLimit = std::chrono::seconds(90);
constexpr auto kSocketLimit = std::chrono::seconds(20);
constexpr auto kSocketPoll = std::chrono::milliseconds(5);
constexpr auto kResumeLimit = std::chrono::seconds(20);
constexpr int kMostBoots = 4;

VmOptions complete(VmOptions options) {
  if (options.virtio_balloon) options.initramfs.modules.emplace_back("virtio_balloon");
  if (!options.disk.empty()) options.initramfs.modules.emplace_back("virtio_blk");
  return options;
}

std::string on_off(bool value) { return value ? "on" : "off"; }

// QEMU makes its sockets while it starts; until then connecting fails.
host::JsonLineClient connect_soon(const std::string& path, ChildProcess& qemu) {
  auto client = host::JsonLineClient::connect(path);
  const auto connected = [&] {
    if (!client) client = host::JsonLineClient::connect(path);
    return client.has_value();
  };
  (void)eventually([&] { return connected() || !qemu.running(); }, kSocketLimit, kSocketPoll);
  if (client) return *std::move(client);
  if (!qemu.running()) throw std::runtime_error("QEMU ended at once");
  throw std::runtime_error(client.error().message);
}

}  // namespace

Vm::Vm(VmOptions options) : options_(complete(std::move(options))), dir_("vm") {
  const GuestKernel kernel = find_guest_kernel();
  write_initramfs(dir_.file("initramfs"), kernel, options_.initramfs);
  const auto kept = snapshot(kernel);
  if (kept && kept->exists() && resume(kernel, *kept)) return;
  for (int tries = 1;; ++tries) {
    try {
      boot(kernel);
      break;
    } catch (const std::exception&) {
      if (tries == kMostBoots || !broken_by_emulator()) throw;
    }
  }
  if (kept && !kept->exists()) {
    try {
      kept->save(*qmp_, footprint_->path());
    } catch (const std::exception& error) {
      std::cerr << "the boot is not kept for other tests: " << error.what() << '\n';
    }
  }
}

std::optional<BootSnapshot> Vm::snapshot(const GuestKernel& kernel) const {
  if (!options_.may_skip_boot || !options_.shared_memory || !options_.disk.empty() ||
      !options_.qemu_options.empty() || accelerator().name != "tcg") {
    return std::nullopt;
  }
  std::vector<std::string> words = command_line(kernel);
  for (std::string& word : words) {
    if (const auto at = word.find(dir_.path()); at != std::string::npos) {
      word.erase(at, dir_.path().size());
    }
  }
  words.push_back(qemu_version());
  return BootSnapshot(words, {kernel.image, dir_.file("initramfs")});
}

void Vm::start(const GuestKernel& kernel, const std::vector<std::string>& more_options) {
  guest_.reset();
  qmp_.reset();
  std::vector<std::string> argv = command_line(kernel);
  argv.insert(argv.end(), more_options.begin(), more_options.end());
  qemu_ = std::make_unique<ChildProcess>(argv, dir_.file("qemu.log"));
  try {
    connect();
  } catch (const std::exception& error) {
    fail(error.what());
  }
}

void Vm::boot(const GuestKernel& kernel) {
  start(kernel);
  wait_ready();
}

bool Vm::resume(const GuestKernel& kernel, const BootSnapshot& from) {
  start(kernel, {"-incoming", "defer"});
  try {
    from.restore(*qmp_, footprint_->path());
    guest_->call("meminfo", {}, kResumeLimit);
    return true;
  } catch (const std::exception& error) {
    std::cerr << "the guest boots, since a kept boot is no good: " << error.what() << '\n';
    from.remove();
    return false;
  }
}

bool Vm::broken_by_emulator() const {
  // The kernel patches its own code while it runs: an int3 first, then the rest, then the first
  // byte (smp_text_poke_batch_finish(), x86). QEMU's TCG with a thread per vCPU (seen with 7.2) now
  // and then executes the stale int3 after the kernel has forgotten why it was there, and the
  // kernel panics. It happens at boot, where most of the patching is; no guest on hardware does
  // that.
  return accelerator().name.find("tcg") != std::string::npos &&
         console_tail(200).find("Oops: int3") != std::string::npos;
}

// The members end in reverse order: clients, then QEMU, then its folder.
Vm::~Vm() = default;

std::vector<std::string> Vm::command_line(const GuestKernel& kernel) const {
  const std::string size = std::to_string(options_.memory.count() >> 20) + "M";
  std::string cmdline = "console=ttyS0 loglevel=5 panic=0";
  if (!options_.extra_cmdline.empty()) cmdline += " " + options_.extra_cmdline;

  std::vector<std::string> argv{"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display",
                                "none"};
  for (const std::string& word : accelerator().qemu_options()) argv.push_back(word);
  const auto add = [&](const char* option, const std::string& value) {
    argv.emplace_back(option);
    argv.push_back(value);
  };
  add("-smp", std::to_string(options_.cpus));
  add("-m", size);
  if (options_.shared_memory) {
    add("-object", "memory-backend-memfd,id=ram,share=on,size=" + size);
    add("-machine", "q35,memory-backend=ram");
  } else {
    add("-machine", "q35");
  }
  add("-kernel", kernel.image);
  add("-initrd", dir_.file("initramfs"));
  add("-append", cmdline);
  add("-serial", "file:" + console_log());
  add("-qmp", "unix:" + dir_.file("qmp") + ",server=on,wait=off");
  add("-qmp", "unix:" + daemon_qmp_socket() + ",server=on,wait=off");
  add("-device", "virtio-serial-pci");
  add("-chardev", "socket,id=test,server=on,wait=off,path=" + dir_.file("test"));
  add("-device", "virtserialport,chardev=test,name=org.fileballoon.test");
  if (options_.channel) {
    add("-chardev", "socket,id=channel,server=on,wait=off,path=" + channel_socket());
    add("-device", "virtserialport,chardev=channel,name=org.fileballoon.0");
  }
  if (options_.virtio_balloon) {
    add("-device",
        "virtio-balloon-pci,id=balloon,deflate-on-oom=" + on_off(options_.deflate_on_oom) +
            ",free-page-reporting=" + on_off(options_.free_page_reporting));
  }
  if (!options_.disk.empty()) {
    add("-drive", "file=" + options_.disk + ",format=raw,if=virtio,cache=none");
  }
  for (const std::string& word : options_.qemu_options) argv.push_back(word);
  return argv;
}

void Vm::connect() {
  guest_ = std::make_unique<GuestClient>(connect_soon(dir_.file("test"), *qemu_));
  auto qmp = host::QmpClient::greet(connect_soon(dir_.file("qmp"), *qemu_), kSocketLimit);
  if (!qmp) throw std::runtime_error(qmp.error().message);
  qmp_ = std::make_unique<host::QmpClient>(*std::move(qmp));
  if (options_.shared_memory) footprint_ = std::make_unique<Footprint>(pid());
}

void Vm::wait_ready() {
  const auto deadline = std::chrono::steady_clock::now() + kBootLimit;
  while (!guest_->wait_ready(std::chrono::milliseconds(500))) {
    if (console_tail(200).find("Kernel panic") != std::string::npos) fail("the guest panicked");
    if (!qemu_->running()) fail("QEMU ended while the guest booted");
    if (std::chrono::steady_clock::now() > deadline) fail("the guest did not come up");
  }
}

std::string Vm::console_tail(std::size_t lines) const { return tail_of(console_log(), lines); }

void Vm::fail(const std::string& what) const {
  throw std::runtime_error(what + "\n--- QEMU said ---\n" + tail_of(dir_.file("qemu.log"), 20) +
                           "--- end of the guest's console ---\n" + console_tail());
}

void touch_free_memory(Vm& vm) {
  const Bytes free = vm.guest().meminfo("MemFree");
  // The guest's own reserves grow with its size, and no OOM kill is wanted here.
  const Bytes left = std::max(Bytes::mib(64), Bytes(vm.options().memory.count() / 16));
  vm.guest().touch_and_free((free - left).page_floor());
}

}  // namespace fileballoon::vmkit
