#include "uffd/pager/paging.h"

#include <exception>
#include <new>
#include <system_error>

#include "uffd/pager/tier_store.h"

namespace fileballoon {
namespace {

// Pause between two attempts to bring everything back to a host that has no memory for it.
constexpr std::chrono::milliseconds kDetachRetry{200};

}  // namespace

Result<std::unique_ptr<PageStore>> make_store(const PagingOptions& options, Bytes ram,
                                              std::shared_ptr<WriteBudget>& budget) {
  if (options.memory.count() == 0 && options.path.empty()) {
    return Error{"paging needs a store: a limit of compressed memory, a path, or both"};
  }
  try {
    std::unique_ptr<CompressedStore> memory;
    if (options.memory.count() > 0) {
      memory = std::make_unique<CompressedStore>(
          CompressedStoreOptions{options.memory, options.compression});
    }
    if (options.path.empty()) {
      return std::unique_ptr<PageStore>(std::move(memory));
    }
    if (options.daily_writes.count() > 0) {
      auto opened =
          WriteBudget::open(options.budget_file, options.daily_writes, WriteBudget::now());
      if (!opened) {
        return opened.error();
      }
      budget = std::move(*opened);
    }
    auto file =
        StoreFile::open({options.path, options.file.count() > 0 ? options.file : ram, options.vm});
    if (!file) {
      return file.error();
    }
    auto pages = std::make_unique<FileStore>(std::move(*file), budget);
    if (!memory) {
      return std::unique_ptr<PageStore>(std::move(pages));
    }
    return std::unique_ptr<PageStore>(
        std::make_unique<TierStore>(std::move(memory), std::move(pages)));
  } catch (const std::exception& error) {
    return Error{std::string("cannot make the page store: ") + error.what()};
  }
}

Result<std::unique_ptr<Paging>> Paging::start(WatchedRam& ram, pid_t pid,
                                              const PagingOptions& options) {
  Bytes size;
  for (const RamObject& object : ram.objects()) {
    size += object.size;
  }
  std::unique_ptr<Paging> paging(new Paging());
  auto store = make_store(options, size, paging->budget_);
  if (!store) {
    return store.error();
  }
  auto pager = Pager::create(ram, std::move(*store));
  if (!pager) {
    return pager.error();
  }
  paging->pager_ = std::move(*pager);
  auto tracker = AccessTracker::create(ram, pid, paging->pager_->all_ages());
  if (!tracker) {
    return tracker.error();
  }
  paging->service_ = std::make_unique<PagerService>(*paging->pager_, std::move(*tracker),
                                                    paging->budget_, PagerService::Options());
  return paging;
}

Paging::~Paging() {
  give_up_ = true;
  if (detacher_.joinable()) {
    detacher_.join();
  }
}

Result<void> Paging::begin_detach() {
  const std::lock_guard guard(mutex_);
  if (detach_.started) {
    return {};
  }
  try {
    detacher_ = std::thread([this] {
      while (!bring_back()) {
        std::this_thread::sleep_for(kDetachRetry);
      }
    });
  } catch (const std::system_error& error) {
    return Error{std::string("cannot start the thread that brings paged-out frames back (limits of "
                             "processes or of memory: RLIMIT_NPROC, TasksMax, RLIMIT_AS): ") +
                 error.what()};
  }
  detach_.started = true;
  return {};
}

// False: no memory; what is back is back, and another call goes on.
bool Paging::bring_back() try {
  const auto tell = [this](const Pager::Progress& progress) {
    const std::lock_guard lock(mutex_);
    detach_.progress = progress;
    return !give_up_;
  };
  Pager::Progress end = service_->detach(tell);
  // A host without memory for it leaves pages in the store. Who waits for the end may take the
  // store away, so it has not come before they are all back, or known to be lost.
  Pager::Progress before;
  while (!give_up_ && pager_->stats().paged_pages > end.lost) {
    std::this_thread::sleep_for(kDetachRetry);
    before.done += end.done - end.lost;
    end = pager_->page_in_all([&](const Pager::Progress& progress) {
      return tell({before.done + progress.done, before.done + progress.total, progress.lost});
    });
  }
  const std::lock_guard lock(mutex_);
  detach_.progress = {before.done + end.done, before.done + end.total, end.lost};
  detach_.finished = true;
  return true;
} catch (const std::bad_alloc&) {
  return give_up_;
}

Paging::Detach Paging::detach_state() const {
  const std::lock_guard guard(mutex_);
  return detach_;
}

Pager::Progress Paging::detach() {
  (void)begin_detach().value();
  if (detacher_.joinable()) {
    detacher_.join();
  }
  return detach_state().progress;
}

PageSource::Content PagingSource::fetch(std::uint32_t object, std::uint64_t first,
                                        std::uint32_t count, std::uint64_t fault) {
  Pager* pager = pager_.load(std::memory_order_acquire);
  return pager != nullptr ? pager->fetch(object, first, count, fault) : Content{};
}

void PagingSource::filled(std::uint32_t object, std::uint64_t first, std::uint32_t count) {
  if (Pager* pager = pager_.load(std::memory_order_acquire)) {
    pager->filled(object, first, count);
  }
}

}  // namespace fileballoon
