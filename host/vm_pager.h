// VmPager: the actor that pages one VM, through the VM's keeper (uffd/pager). It tells the keeper
// what the policy ordered and asks how it stands, on a thread of a pool, since a keeper on a host
// that thrashes may take seconds to answer; what the keeper reports becomes events. Contents never
// come near this process: it may die at any time. Control thread only, except as noted.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "host/actor.h"
#include "host/asio.h"
#include "host/event_log.h"
#include "host/memory_settings.h"
#include "uffd/pager/paging_client.h"

namespace fileballoon::host {

/// What the keeper is told of a store. `budget_dir` is where the day's writes are remembered.
[[nodiscard]] PagingOptions paging_options(const StoreSettings& store, const std::string& vm,
                                           const std::string& budget_dir);

/// Makes the store in the keeper that listens on `socket`, where paging has not been started yet.
/// Blocks; thread-safe. The error names the part of the store and the remedy.
[[nodiscard]] Result<void> start_paging(const std::string& socket, const PagingOptions& options);

class VmPager final : public Actor, public std::enable_shared_from_this<VmPager> {
 public:
  /// How often the keeper is asked while there is something to do, and while there is not.
  static constexpr std::chrono::milliseconds kBusyInterval{250};
  static constexpr std::chrono::milliseconds kIdleInterval{1000};
  /// How long a store that could not be made is left alone.
  static constexpr std::chrono::seconds kRetry{10};

  VmPager(asio::io_context& control, asio::thread_pool& pool, EventLog& events, std::string vm,
          std::string socket, PagingOptions options);
  ~VmPager() override;

  /// Starts to talk to the keeper; makes the store if it has none yet. `on_ceiling` is called when
  /// a ceiling can be kept or has come into force, and when the guest comes close to it or has to
  /// wait below it.
  void start(std::function<void()> on_ceiling = {});
  /// Says nothing more to the keeper, which goes on as it was told.
  void stop();

  [[nodiscard]] bool is_ready() const override;
  [[nodiscard]] Bytes withheld() const override;
  void carry_out(const PolicyOrder& order, Bytes footprint) override;

  /// The most that the VM's RAM may take at every moment, kept by the keeper from then on, whether
  /// or not this process lives; nothing: no ceiling, and an older one is lifted.
  void set_ceiling(std::optional<Bytes> most);
  /// The highest ceiling that the keeper may be keeping at this moment, one that is on its way to
  /// it included; nothing where there may be none.
  [[nodiscard]] std::optional<Bytes> ceiling_in_force() const;
  /// Whether a ceiling is kept if one is set: the store takes pages.
  [[nodiscard]] bool can_hold() const { return is_ready() && problem().empty(); }
  /// Memory of the host that the store and its book take: they count like the VM's RAM.
  [[nodiscard]] Bytes store_memory() const;

  /// What the guest has touched of its paged-out memory, since the keeper began; nothing before the
  /// keeper has said.
  [[nodiscard]] std::optional<Bytes> asked_back() const;

  /// Why page-out has stopped; empty where it has not.
  [[nodiscard]] std::string problem() const;

  /// Ends paging for good and brings everything back, with an event every tenth of the way. The
  /// error says that the keeper cannot be reached.
  [[nodiscard]] asio::awaitable<Result<Pager::Progress>> bring_back();

  /// For `stats`.
  [[nodiscard]] boost::json::object describe() const;

 private:
  struct Link;   // the connection; used by one thread of the pool at a time
  struct Order;  // what the keeper should do
  struct Ceiling {
    std::optional<Bytes> most;
    bool operator==(const Ceiling&) const = default;
  };
  struct Answer;  // what one conversation with it came to

  [[nodiscard]] asio::awaitable<void> talk();
  void take(Answer answer);
  void report(const faultd::PagingClient::Status& status);
  void report_progress(const Paging::Detach& detach);
  void look_at_ceiling(bool was_ready, const PagerService::Status& before,
                       const PagerService::Status& now);

  asio::io_context& control_;
  asio::thread_pool& pool_;
  EventLog& events_;
  std::string vm_;
  std::shared_ptr<Link> link_;
  std::unique_ptr<Order> order_;
  std::optional<Ceiling> ceiling_;  // nothing: nobody has said, the keeper's own stays
  std::optional<Ceiling> sent_;     // with the conversation under way
  std::function<void()> on_ceiling_;
  std::optional<faultd::PagingClient::Status> status_;
  std::string unavailable_;   // why there is no paging; empty: there is
  bool failed_ = false;       // the last conversation
  std::uint64_t tenths_ = 0;  // of the way back, told
  Signal changed_;
  bool stopping_ = false;
};

}  // namespace fileballoon::host
