// Paging: everything that pages one VM, put together from what an operator configures: the store,
// its write budget, the pager, the access tracker and the thread that works towards a footprint.
// The process that holds the VM's userfaultfd owns it. All methods are thread-safe except as noted.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "uffd/pager/codec.h"
#include "uffd/pager/pager_service.h"

namespace fileballoon {

struct PagingOptions {
  std::string vm;  ///< owner of the store file
  Bytes memory;    ///< limit of compressed memory; zero: none
  Compression compression = Compression::lz4;
  std::string path;         ///< directory, file or block device; empty: none
  Bytes file;               ///< limit of the file; zero: as much as the VM has RAM
  Bytes daily_writes;       ///< to the file; zero: no limit
  std::string budget_file;  ///< where the day's writes are remembered
};

/// The store that `options` describe: memory, file, or both as a tier.
[[nodiscard]] Result<std::unique_ptr<PageStore>> make_store(const PagingOptions& options, Bytes ram,
                                                            std::shared_ptr<WriteBudget>& budget);

class Paging {
 public:
  /// `ram` is the RAM of `pid` and must outlive this. Errors name the option and the remedy.
  [[nodiscard]] static Result<std::unique_ptr<Paging>> start(WatchedRam& ram, pid_t pid,
                                                             const PagingOptions& options);
  Paging(const Paging&) = delete;
  Paging& operator=(const Paging&) = delete;
  ~Paging();

  [[nodiscard]] Pager& pager() { return *pager_; }
  void set_goal(Bytes footprint) { service_->set_goal(footprint); }
  void clear_goal() { service_->clear_goal(); }
  void set_ceiling(std::optional<Bytes> most) { service_->set_ceiling(most); }
  void set_limit(Bytes paged) { service_->set_limit(paged); }
  [[nodiscard]] PagerService::Status status() const { return service_->status(); }

  /// Starts to bring everything back in a thread of its own; at once if that has been started
  /// already. Paging out is over for good. Fails, changing nothing, where no thread can be had.
  Result<void> begin_detach();
  /// Where that is.
  struct Detach {
    bool started = false;
    bool finished = false;
    Pager::Progress progress;
  };
  [[nodiscard]] Detach detach_state() const;
  /// begin_detach(), and waits for its end. Throws std::runtime_error where no thread can be had.
  Pager::Progress detach();

 private:
  Paging() = default;
  [[nodiscard]] bool bring_back();

  std::shared_ptr<WriteBudget> budget_;
  std::unique_ptr<Pager> pager_;
  std::unique_ptr<PagerService> service_;
  mutable std::mutex mutex_;  // guards what follows
  Detach detach_;
  std::atomic<bool> give_up_{false};
  std::thread detacher_;
};

/// Stands between a fault engine, which lives as long as the VM is held, and paging, which is
/// started later.
class PagingSource final : public PageSource {
 public:
  /// `pager` must live on until the engine has stopped.
  void use(Pager* pager) { pager_.store(pager, std::memory_order_release); }
  [[nodiscard]] Content fetch(std::uint32_t object, std::uint64_t first, std::uint32_t count,
                              std::uint64_t fault) override;
  void filled(std::uint32_t object, std::uint64_t first, std::uint32_t count) override;

 private:
  std::atomic<Pager*> pager_{nullptr};
};

}  // namespace fileballoon
