#include "uffd/pager/pager.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <new>

#include "uffd/pager/page_buffer.h"

namespace fileballoon {
namespace {

// Longest content a fetch() gives; Options::read_ahead is clipped to it.
constexpr std::uint32_t kMaxContent = 64;

// What fetch() hands out stays valid until the thread's next call, so each reader has its own. The
// requests lie there too: making 64 of them anew would cost a twentieth of a page-in.
struct ReaderState {
  PageBuffer buffer{kMaxContent};
  std::array<PageGet, kMaxContent> gets;
};
ReaderState& reader_state() {
  thread_local ReaderState state;
  return state;
}

// "always within_size advise [never] deny force" -> "never"
std::string shmem_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string word;
  while (file >> word) {
    if (word.size() > 2 && word.front() == '[') {
      return word.substr(1, word.size() - 2);
    }
  }
  return "never";  // a kernel without huge pages
}

}  // namespace

Result<std::unique_ptr<Pager>> Pager::create(WatchedRam& ram, std::unique_ptr<PageStore> store,
                                             Options options) {
  if (ram.options().mode != RefaultMode::engine || !ram.options().write_protect) {
    return Error{"paging needs refaults answered by the fault engine: attach with --refault uffd"};
  }
  for (const RamObject& object : ram.objects()) {
    if (object.fd < 0) {
      return Error{
          "paging needs guest RAM in a shared memory object; for QEMU: -object "
          "memory-backend-memfd,share=on"};
    }
  }
  if (const std::string huge = shmem_huge_pages(); huge != "never" && huge != "deny") {
    return Error{"paging is refused while shared memory can have huge pages (shmem_enabled is '" +
                 huge +
                 "'); write never to /sys/kernel/mm/transparent_hugepage/shmem_enabled before the "
                 "VM starts"};
  }
  std::uint64_t pages = 0;
  for (const RamObject& object : ram.objects()) {
    pages += object.size.whole_pages();
  }
  if (pages > std::numeric_limits<std::uint32_t>::max()) {
    return Error{"paging is limited to 16 TiB of RAM a VM"};
  }
  return std::unique_ptr<Pager>(new Pager(ram, std::move(store), options));
}

Pager::Pager(WatchedRam& ram, std::unique_ptr<PageStore> store, Options options)
    : ram_(ram), store_(std::move(store)), options_(options) {
  const auto features = Userfaultfd::kernel_features();
  options_.poison = options_.poison && features && features->has(UffdFeature::poison);
  options_.read_ahead = std::clamp(options_.read_ahead, 1U, kMaxContent);
  std::uint64_t key = 0;
  for (const RamObject& object : ram.objects()) {
    first_key_.push_back(key);
    // Groups of the slot table lie in one range lock each: objects start on a piece.
    const std::uint64_t piece = RangeLocks::kPiece.whole_pages();
    key += (object.size.whole_pages() + piece - 1) / piece * piece;
    ages_.push_back(std::make_unique<AgeMap>(object.size.whole_pages()));
  }
  first_key_.push_back(key);
  table_ = std::make_unique<SlotTable>(key);
}

std::vector<AgeMap*> Pager::all_ages() {
  std::vector<AgeMap*> ages;
  for (const auto& age : ages_) {
    ages.push_back(age.get());
  }
  return ages;
}

PageSource::Content Pager::fetch(std::uint32_t object, std::uint64_t first, std::uint32_t count,
                                 std::uint64_t fault) {
  if (is_given_up(key_of(object, fault))) {
    return {Content::Status::later, nullptr, fault, 1};
  }
  counters_.faults.fetch_add(1, std::memory_order_relaxed);
  return content_of(object, first, count, fault);
}

// Lost, and not worth another look yet.
bool Pager::is_given_up(PageKey key) const {
  return !options_.poison && lost_.rests(key, LostPages::Clock::now());
}

PageSource::Content Pager::content_of(std::uint32_t object, std::uint64_t first,
                                      std::uint32_t count, std::uint64_t fault) {
  const PageKey wanted = key_of(object, fault);
  auto& [buffer, gets] = reader_state();
  // The part of the range around the fault, in the direction in which it reaches.
  const std::uint64_t end = first + count;
  std::uint32_t take = std::min(count, options_.read_ahead);
  if (fault + take > end) {
    first = end - take;
  } else {
    first = fault;
  }
  std::uint32_t found = 0;
  for (std::uint32_t i = 0; i < take; ++i) {
    const PageKey key = key_of(object, first + i);
    gets[i] = {key, table_->find(key), buffer.page(i), StoreStatus::ok};
    found += gets[i].slot.valid() ? 1 : 0;
  }
  const auto at = static_cast<std::uint32_t>(fault - first);
  StoreStatus status = StoreStatus::corrupt;  // paged, and the book has no slot: never zeros
  if (found == take) {
    status = store_->get({gets.data(), take});
    status = gets[at].status;
  } else if (gets[at].slot.valid()) {
    status = gets[at].status = store_->get({&gets[at], 1});
    for (std::uint32_t i = 0; i < take; ++i) {
      gets[i].status = i == at ? status : StoreStatus::corrupt;
    }
  }
  for (int retry = 0; status == StoreStatus::io_error && retry < 2; ++retry) {
    status = gets[at].status = store_->get({&gets[at], 1});
  }
  if (status != StoreStatus::ok) {
    if (lost_.add(wanted, LostPages::Clock::now())) {
      counters_.lost.fetch_add(1, std::memory_order_relaxed);
      events_.post({options_.poison ? PagerEvent::Kind::page_lost : PagerEvent::Kind::page_withheld,
                    status, object, fault});
    }
    return {options_.poison ? Content::Status::lost : Content::Status::later, nullptr, fault, 1};
  }
  // Pages ahead that cannot be had keep their faults to themselves.
  std::uint32_t low = at;
  std::uint32_t high = at + 1;
  while (low > 0 && gets[low - 1].status == StoreStatus::ok) {
    --low;
  }
  while (high < take && gets[high].status == StoreStatus::ok) {
    ++high;
  }
  return {Content::Status::ready, buffer.page(low), first + low, high - low, gets[at].slept};
}

void Pager::filled(std::uint32_t object, std::uint64_t first, std::uint32_t count) {
  forget(object, first, count);
  counters_.read_ahead.fetch_add(count - 1, std::memory_order_relaxed);
}

// They are in memory.
void Pager::forget(std::uint32_t object, std::uint64_t first, std::uint32_t count) {
  for (std::uint64_t page = first; page < first + count; ++page) {
    const PageKey key = key_of(object, page);
    if (table_->find(key).valid()) {
      withdraw(key);
      counters_.paged_in.fetch_add(1, std::memory_order_relaxed);
    }
    ages_[object]->set(page, 0);
  }
}

void Pager::withdraw(PageKey key) {
  const Slot slot = table_->find(key);
  table_->erase(key);
  store_->free(slot);
  lost_.remove(key);
  counters_.paged.fetch_sub(1, std::memory_order_relaxed);
}

bool Pager::enter(PageKey key, Slot slot) {
  // An entry of before is left where the VMM itself removed the page (MADV_REMOVE).
  if (const Slot old = table_->find(key); old.valid()) {
    store_->free(old);
    counters_.paged.fetch_sub(1, std::memory_order_relaxed);
  }
  try {
    table_->set(key, slot);
  } catch (const std::bad_alloc&) {
    return false;
  }
  counters_.paged.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool Pager::with(PageKey key, Slot slot, const std::function<Slot()>& move) {
  if (key.index >= first_key_.back()) {
    return false;
  }
  const auto next = std::upper_bound(first_key_.begin(), first_key_.end(), key.index);
  const auto object = static_cast<std::uint32_t>(next - first_key_.begin() - 1);
  const std::uint64_t page = key.index - first_key_[object];
  const std::lock_guard guard(ram_.locks().of(object, HostOffset(page * kPageSize)));
  if (table_->find(key) != slot) {
    return false;
  }
  const Slot moved = move();
  if (moved != slot) {
    table_->set(key, moved);  // replaces: allocates nothing
  }
  return true;
}

Pager::Progress Pager::page_in_all(const std::function<bool(const Progress&)>& progress) {
  Progress state;
  state.total = counters_.paged.load(std::memory_order_relaxed);
  for (std::uint32_t object = 0; object < ages_.size(); ++object) {
    const std::uint64_t pages = ram_.frames(object).pages();
    const std::uint64_t piece = RangeLocks::kPiece.whole_pages();
    for (std::uint64_t first = 0; first < pages; first += piece) {
      const HostRange range{HostOffset(first * kPageSize),
                            Bytes::pages(std::min(piece, pages - first))};
      page_in_piece(object, range, state);
      if (!progress(state)) {
        return state;
      }
    }
  }
  return state;
}

std::uint64_t Pager::page_in_some(std::uint64_t pages) {
  const std::uint64_t piece = RangeLocks::kPiece.whole_pages();
  std::vector<std::uint64_t> pieces;  // of each object
  std::uint64_t all = 0;
  for (std::uint32_t object = 0; object < ages_.size(); ++object) {
    pieces.push_back((ram_.frames(object).pages() + piece - 1) / piece);
    all += pieces.back();
  }
  Progress state;
  for (std::uint64_t seen = 0; seen < all && state.done < pages; ++seen) {
    next_piece_ %= all;
    std::uint64_t index = next_piece_++;
    std::uint32_t object = 0;
    while (index >= pieces[object]) {
      index -= pieces[object++];
    }
    const std::uint64_t first = index * piece;
    const std::uint64_t count = std::min(piece, ram_.frames(object).pages() - first);
    page_in_piece(object, {HostOffset(first * kPageSize), Bytes::pages(count)}, state);
  }
  return state.done;
}

void Pager::page_in_piece(std::uint32_t object, HostRange piece, Progress& progress) {
  const std::uint64_t first = piece.start.bytes() / kPageSize;
  const std::uint64_t end = first + piece.pages();
  FrameMap& frames = ram_.frames(object);
  for (std::uint64_t page = first; page < end;) {
    // The lock is given up after each content, so that faults beside it wait for one at most.
    const std::lock_guard guard(ram_.locks().of(object, piece.start));
    const auto run = static_cast<std::uint32_t>(frames.run(page, end - page, FrameState::paged));
    if (run == 0) {
      ++page;
      continue;
    }
    if (is_given_up(key_of(object, page))) {
      ++page;
      continue;  // nothing may take its place
    }
    const Content content = content_of(object, page, run, page);
    if (content.status == Content::Status::ready) {
      // Through the object and not into the VMM: so it also works for a VMM that is about to exit,
      // and for every place where the object is mapped.
      const auto length = content.count * kPageSize;
      const ssize_t wrote = ::pwrite(ram_.objects()[object].fd, content.data, length,
                                     static_cast<off_t>(page * kPageSize));
      const std::uint64_t whole = wrote > 0 ? static_cast<std::uint64_t>(wrote) / kPageSize : 0;
      if (whole > 0) {
        forget(object, page, static_cast<std::uint32_t>(whole));
        frames.set(page, whole, FrameState::backed);
        const HostRange range{HostOffset(page * kPageSize), Bytes::pages(whole)};
        ram_.for_each_place(object, range, [&](const auto& region, AddressRange where) {
          // Its marker of page-out would make the page write-protected when it is mapped.
          if (ram_.shard_of(region).unprotect(where, Wake::yes).status != UffdStatus::done) {
            (void)ram_.shard_of(region).wake(where);
          }
        });
        progress.done += whole;
        page += whole;
        continue;
      }
      return;  // no memory: what is left stays in the store, progress shows it
    }
    const HostRange lost{HostOffset(page * kPageSize), Bytes::pages(1)};
    ++page;
    if (content.status == Content::Status::later) {
      continue;  // nothing may take its place
    }
    bool is_poisoned = true;
    ram_.for_each_place(object, lost, [&](const auto& region, AddressRange where) {
      const UffdStatus status = ram_.shard_of(region).poison_marked(where, Wake::yes).status;
      // Poisoned before, by a touch or by a round of this.
      is_poisoned = is_poisoned && (status == UffdStatus::done || status == UffdStatus::exists);
    });
    if (is_poisoned) {
      ++progress.done;
      ++progress.lost;
    }
  }
}

PagerStats Pager::stats() const {
  const auto get = [](const auto& counter) { return counter.load(std::memory_order_relaxed); };
  PagerStats stats;
  stats.paged_pages = get(counters_.paged);
  stats.paged_out = get(counters_.paged_out);
  stats.zero_pages = get(counters_.zero);
  stats.paged_in = get(counters_.paged_in);
  stats.faults = get(counters_.faults);
  stats.read_ahead = get(counters_.read_ahead);
  stats.write_races = get(counters_.write_races);
  stats.rejected = get(counters_.rejected);
  stats.lost_pages = get(counters_.lost);
  stats.store = store_->stats();
  stats.metadata = stats.store.metadata + table_->memory();
  for (std::uint32_t object = 0; object < ages_.size(); ++object) {
    stats.metadata += ages_[object]->memory() + ram_.frames(object).memory();
  }
  return stats;
}

}  // namespace fileballoon
