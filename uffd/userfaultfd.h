// Userfaultfd: a thin and complete C++ face of userfaultfd(2). Set-up reports errors by name and
// remedy; everything that runs while a thread waits for its page returns an outcome that cannot be
// ignored, since partial progress, EEXIST, EAGAIN and ENOENT are normal there and never
// exceptional. A descriptor may belong to another process's memory (hot_attach.h, firecracker.h):
// all operations then act on that process. Operations are thread-safe (the kernel serialises them);
// moves are not.
#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>
#include <span>
#include <string>

#include "fileballoon/bytes.h"
#include "fileballoon/result.h"
#include "fileballoon/unique_fd.h"

namespace fileballoon {

/// `size` bytes from virtual address `start` in the process that the userfaultfd belongs to.
struct AddressRange {
  std::uint64_t start = 0;
  Bytes size;
  [[nodiscard]] constexpr std::uint64_t end() const { return start + size.count(); }
  [[nodiscard]] constexpr bool contains(std::uint64_t address) const {
    return address >= start && address - start < size.count();
  }
  constexpr bool operator==(const AddressRange&) const = default;
};

/// Features of the kernel's interface; the values are the kernel's bits. Debian 12's headers end at
/// 6.1, the later ones are given here by number (include/uapi/linux/userfaultfd.h of 6.8).
enum class UffdFeature : std::uint64_t {
  pagefault_wp = 1ULL << 0,
  event_fork = 1ULL << 1,
  event_remap = 1ULL << 2,
  event_remove = 1ULL << 3,
  missing_hugetlbfs = 1ULL << 4,
  missing_shmem = 1ULL << 5,
  event_unmap = 1ULL << 6,
  sigbus = 1ULL << 7,
  thread_id = 1ULL << 8,
  minor_hugetlbfs = 1ULL << 9,
  minor_shmem = 1ULL << 10,
  exact_address = 1ULL << 11,
  wp_hugetlbfs_shmem = 1ULL << 12,
  wp_unpopulated = 1ULL << 13,  ///< 6.4
  poison = 1ULL << 14,          ///< 6.6
  wp_async = 1ULL << 15,        ///< 6.7
  move = 1ULL << 16,            ///< 6.8
};

/// A set of features.
class UffdFeatures {
 public:
  constexpr UffdFeatures() = default;
  constexpr explicit UffdFeatures(std::uint64_t bits) : bits_(bits) {}
  constexpr UffdFeatures(UffdFeature feature) : bits_(static_cast<std::uint64_t>(feature)) {}
  [[nodiscard]] constexpr std::uint64_t bits() const { return bits_; }
  [[nodiscard]] constexpr bool has(UffdFeatures other) const {
    return (bits_ & other.bits_) == other.bits_;
  }
  friend constexpr UffdFeatures operator|(UffdFeatures a, UffdFeatures b) {
    return UffdFeatures(a.bits_ | b.bits_);
  }
  friend constexpr UffdFeatures operator&(UffdFeatures a, UffdFeatures b) {
    return UffdFeatures(a.bits_ & b.bits_);
  }
  /// In this set and not in `other`.
  [[nodiscard]] constexpr UffdFeatures without(UffdFeatures other) const {
    return UffdFeatures(bits_ & ~other.bits_);
  }
  constexpr bool operator==(const UffdFeatures&) const = default;

 private:
  std::uint64_t bits_ = 0;
};
constexpr UffdFeatures operator|(UffdFeature a, UffdFeature b) {
  return UffdFeatures(a) | UffdFeatures(b);
}

/// "missing_shmem, wp_hugetlbfs_shmem"; "none" for the empty set; unknown bits as "bit N".
[[nodiscard]] std::string to_string(UffdFeatures features);

/// What one operation did.
enum class UffdStatus {
  done,       ///< all of it
  exists,     ///< EEXIST: a page is there already, someone was faster; WAKE it and go on after it
  again,      ///< EAGAIN: the mapping is changing; read the events, then retry
  missing,    ///< ENOENT: no such registered mapping (it was unmapped or remapped)
  exited,     ///< ESRCH: the process has exited
  no_memory,  ///< ENOMEM/ENOSPC: retry later
  poisoned,   ///< EFAULT/EHWPOISON: source unreadable, or (CONTINUE) no page to continue with
  invalid,    ///< EINVAL and the rest: wrong use
};

struct [[nodiscard]] UffdOutcome {
  UffdStatus status = UffdStatus::done;
  /// Leading bytes that were done, even where status is not `done`. WRITEPROTECT, WAKE: all or 0.
  Bytes completed;
  int error = 0;  ///< errno of a status other than `done`
};

enum class UffdRead {
  messages,  ///< at least one was read
  empty,     ///< none waits
  closed,    ///< the descriptor is not usable any more
};

enum class UffdMode : std::uint64_t {
  missing = UFFDIO_REGISTER_MODE_MISSING,
  write_protect = UFFDIO_REGISTER_MODE_WP,
  missing_and_write_protect = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
  minor = UFFDIO_REGISTER_MODE_MINOR,
  missing_and_minor = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
  all = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR,
};

enum class Wake { yes, no };

class Userfaultfd {
 public:
  Userfaultfd() = default;  ///< holds nothing

  /// For this process's own memory. Tries /dev/userfaultfd (6.1), then userfaultfd(2); where both
  /// are forbidden the error says what to change. Fails where the kernel lacks one of `required`,
  /// naming it; takes those of `wanted` that it has. Non-blocking and close-on-exec.
  [[nodiscard]] static Result<Userfaultfd> open(UffdFeatures required, UffdFeatures wanted = {});

  /// Takes a fresh descriptor made elsewhere (in a VMM, by hot attach) and negotiates.
  [[nodiscard]] static Result<Userfaultfd> negotiate(UniqueFd fd, UffdFeatures required,
                                                     UffdFeatures wanted = {});

  /// Takes a descriptor that its maker has negotiated already (Firecracker); `features` is what is
  /// known of it. Checks that it is a userfaultfd at all and makes it non-blocking: one that blocks
  /// reports POLLERR for ever (fs/userfaultfd.c, userfaultfd_poll).
  [[nodiscard]] static Result<Userfaultfd> adopt(UniqueFd fd, UffdFeatures features);

  /// What this kernel offers.
  [[nodiscard]] static Result<UffdFeatures> kernel_features();

  [[nodiscard]] bool valid() const { return fd_.valid(); }
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] UffdFeatures features() const { return features_; }
  [[nodiscard]] UniqueFd release() { return std::move(fd_); }

  /// Starts tracking `range`; the error names the range, the mode and what the kernel said.
  [[nodiscard]] Result<void> watch(AddressRange range, UffdMode mode) const;
  /// Stops tracking; waiters are woken. ENOENT and the like are no errors here.
  void unwatch(AddressRange range) const;

  // The fault path.
  UffdOutcome zeropage(AddressRange range, Wake wake) const;
  /// Copies from `source` in this process.
  UffdOutcome copy(AddressRange range, const void* source, Wake wake,
                   bool write_protected = false) const;
  /// Maps what the page cache already holds (MINOR).
  UffdOutcome continue_(AddressRange range, Wake wake) const;
  UffdOutcome protect(AddressRange range) const;
  UffdOutcome unprotect(AddressRange range, Wake wake) const;
  UffdOutcome wake(AddressRange range) const;
  /// Makes touching the range a SIGBUS (6.6); `invalid` on older kernels.
  UffdOutcome poison(AddressRange range, Wake wake) const;
  /// poison() also where a write-protection marker is, which poison() takes for a page that is
  /// there (mfill_atomic_pte_poison() wants pte_none(), Linux 6.6).
  UffdOutcome poison_marked(AddressRange range, Wake wake) const;

  /// Reads as many messages as wait and fit; never blocks.
  [[nodiscard]] UffdRead read(std::span<uffd_msg> buffer, std::size_t& count) const;

 private:
  Userfaultfd(UniqueFd fd, UffdFeatures features) : fd_(std::move(fd)), features_(features) {}

  UniqueFd fd_;
  UffdFeatures features_;
};

/// For log lines and tests.
[[nodiscard]] const char* to_string(UffdStatus status);

}  // namespace fileballoon
