// GuestSession: the daemon's half of the protocol for one VM, without sockets, threads or clocks.
// Bytes from the guest go in, bytes for the guest come out, and what the guest asks for is handed
// to a Delegate. It guarantees that an ACK leaves only for a report of the running session, after
// that report's work was completed; that nothing of an older session has any effect; and that
// memory is bounded whatever the guest sends: with kMaxOpenReports reports in work, or kMaxOutput
// bytes unsent, it takes no more input. One thread at a time.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fileballoon/ram_layout.h"
#include "fileballoon/session.h"
#include "fileballoon/wire.h"

namespace fileballoon::host {

class GuestSession {
 public:
  using BootId = std::array<std::uint8_t, 16>;

  /// Reports in work at a time. Several, so that the guest's pipeline never waits for a round trip;
  /// few, since each may hold 64 KiB of ranges.
  static constexpr std::size_t kMaxOpenReports = 8;
  /// Unsent bytes at which input stops.
  static constexpr std::size_t kMaxOutput = 128 * 1024;

  /// Names a report: its session (counted here, never reused) and its number in it.
  struct Batch {
    std::uint64_t generation = 0;
    std::uint64_t sequence = 0;
  };

  class Delegate {
   public:
    virtual ~Delegate() = default;
    /// The handshake is done. `rebooted`: the guest's boot id is not that of the last session.
    virtual void on_established(const wire::Hello& hello, bool rebooted) = 0;
    /// The session that was established is over; its open reports are void (cancel their work).
    virtual void on_session_over() = 0;
    /// Do the work, then call complete(), also for a batch whose session is over by then: it is
    /// what bounds the work that a guest can start by opening session after session.
    virtual void on_report(Batch batch, wire::Report report) = 0;
    /// Put memory behind the frames, then call complete_populate(); as with a report.
    virtual void on_populate(Batch batch, wire::Populate request) = 0;
    virtual void on_stats(const wire::Stats& stats) = 0;
    virtual void on_deflated(const wire::Deflated& deflated) = 0;
  };

  /// `layout` and `delegate` must outlive this.
  GuestSession(Session::IdSource new_id, const RamLayout& layout, Delegate& delegate);

  /// A channel was opened: starts anew and says HELLO.
  void open();
  /// To be called every few seconds: says HELLO again where no session stands although the guest
  /// was heard since the last call, so our HELLO must have been lost. Not to a silent guest: with
  /// no agent there, unread HELLOs would fill the channel.
  void repeat_hello();
  /// The channel was lost: ends the session without a word.
  void close();

  /// Whether receive() would make progress now.
  [[nodiscard]] bool wants_input() const;
  /// Takes bytes from the front of `input` and acts on them; returns how many it took. Fewer than
  /// all means: call again when wants_input() says so (after complete() or take_output()).
  [[nodiscard]] std::size_t receive(std::span<const std::byte> input);
  /// The work for `batch` is done or was cancelled: queues its ACK, unless its session is over.
  /// Exactly once for every on_report().
  void complete(Batch batch, std::vector<wire::RangeOutcome> outcomes);
  /// The same for on_populate(); `backed`: frames with memory now, one count per range.
  void complete_populate(Batch batch, std::vector<std::uint32_t> backed);

  /// What the balloon should be; sent now or once a session stands. Only the latest is sent.
  void set_limits(const wire::LimitsMessage& limits);
  /// What the guest should do with cold page cache; sent like the limits.
  void set_cache(const wire::CacheOrder& order);
  /// Asks the guest to give up cold page cache; false without a session.
  bool send_purge(Bytes amount);
  /// Tells the guest how much of its RAM has no memory behind it, where that has changed by
  /// kTellChange or more since it was told last.
  void send_host_state(Bytes absent);
  static constexpr Bytes kTellChange = Bytes::mib(1);
  /// Ends the session with an ERROR for the guest, which is sent when no report is in work any
  /// more: the guest lets go of its pages then, and a discard must not meet a frame that is used
  /// again.
  void fail(wire::ErrorCode code, std::string text);

  [[nodiscard]] bool has_output() const;
  /// Bytes to send, in order; the session keeps none of them.
  [[nodiscard]] std::vector<std::byte> take_output();

  [[nodiscard]] bool is_established() const { return session_.is_established() && !failure_; }
  /// Set once the session ended by an error (ours or the guest's): send the output, then close.
  [[nodiscard]] const std::optional<std::string>& failure() const { return failure_; }
  /// It failed, and the guest has been told.
  [[nodiscard]] bool is_over() const { return failure_ && !farewell_ && output_.empty(); }
  /// In work, of whatever session.
  [[nodiscard]] std::size_t open_reports() const { return open_reports_; }
  /// Whether POPULATE is offered and obeyed; not before set_backs_frames(true).
  void set_backs_frames(bool backs) { backs_frames_ = backs; }

 private:
  void handle(wire::Frame frame);
  void handle_hello(const wire::Hello& hello, Session::Verdict verdict);
  void send(const wire::Message& message);
  void send_hello();
  void end_session();
  [[nodiscard]] std::optional<std::string> ram_mismatch(const wire::Hello& hello) const;

  const RamLayout& layout_;
  Delegate& delegate_;
  Session session_;
  wire::Decoder decoder_;
  std::vector<std::byte> output_;
  std::uint64_t generation_ = 0;
  std::size_t open_reports_ = 0;
  std::uint64_t ignored_ = 0;  // frames outside a session
  std::uint64_t heard_ = 0;    // ignored frames and skipped bytes at the last repeat_hello()
  bool in_session_ = false;    // on_established() was called and on_session_over() was not
  std::optional<BootId> boot_id_;
  std::optional<wire::LimitsMessage> limits_;
  bool limits_due_ = false;
  std::optional<wire::CacheOrder> cache_;
  bool cache_due_ = false;
  std::optional<Bytes> told_absent_;
  std::optional<std::string> failure_;
  std::optional<wire::ErrorMessage> farewell_;  // not sent yet
  bool backs_frames_ = false;
};

}  // namespace fileballoon::host
