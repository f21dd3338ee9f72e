// Mode: a way for the host to get a guest's memory back, behind one interface, so that every
// scenario measures all of them alike. A mode changes how the guest is booted and then acts on it;
// it lives as long as its guest. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fileballoon/bytes.h"
#include "tests/vm/kit/vm.h"

namespace fileballoon::bench {

class Mode {
 public:
  virtual ~Mode() = default;

  /// Before the boot.
  virtual void configure(vmkit::VmOptions& options) const { (void)options; }
  /// After the boot: the mechanism stands ready, its target is "nothing".
  virtual void start(vmkit::Vm& vm) { vm_ = &vm; }

  /// True where inflate() can ask for an amount; others give back memory as they see fit.
  [[nodiscard]] virtual bool takes_target() const { return false; }
  /// True where the mechanism acts on memory that the guest has never touched.
  [[nodiscard]] virtual bool takes_untouched() const { return takes_target(); }
  /// Asks for a balloon of `size`; returns at once.
  virtual void request(Bytes size) { (void)size; }
  /// What is in the balloon now, as the host can see it without disturbing the guest.
  [[nodiscard]] virtual Bytes inflated() { return Bytes(0); }

  /// For mechanisms that a program on the host steers: called several times a second while a
  /// scenario runs.
  virtual void steer() {}

  /// Pages that the guest has taken back from the balloon by itself, since the boot.
  [[nodiscard]] virtual std::uint64_t yielded_pages() { return 0; }
  /// Of these, those that its page reclaim took, which count in its pgsteal_*, too.
  [[nodiscard]] virtual std::uint64_t reclaimed_pages() { return 0; }
  /// True where the guest takes balloon pages by its page reclaim.
  [[nodiscard]] virtual bool yields_by_reclaim() const { return false; }
  /// CPU time of host processes other than QEMU that work for this mode, seconds.
  [[nodiscard]] virtual double helper_cpu_seconds() const { return 0; }
  /// Peak of resident memory of such processes, MiB; 0 where there is none.
  [[nodiscard]] virtual double helper_rss_mib() const { return 0; }

 protected:
  [[nodiscard]] vmkit::Vm& vm() { return *vm_; }

 private:
  vmkit::Vm* vm_ = nullptr;
};

/// Names as users type them, in the order of tables.
[[nodiscard]] const std::vector<std::string>& mode_names();
/// Throws std::runtime_error naming the known modes.
[[nodiscard]] std::unique_ptr<Mode> make_mode(const std::string& name);

}  // namespace fileballoon::bench
