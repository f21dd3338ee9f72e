// Session: who may say what when. Both sides open with HELLO carrying a fresh random id and the
// other's id as far as they know it; a session is established when each has seen its own id come
// back. A HELLO also says whether its sender is established (sequence 1) or still waits (0): who
// waits repeats its HELLO now and then, and is always answered. Frames of any other pair of ids
// belong to an older session and are ignored. Within a session sequences count 1, 2, 3, … in each
// direction; a gap or a repeat ends it, since the channels are reliable streams. A HELLO that does
// not know our id means the peer has started anew: everything in flight is cancelled, our id is
// renewed, and nothing is ever replayed. Pure: ids come from outside.
#pragma once

#include <functional>
#include <string>

#include "fileballoon/wire.h"

namespace fileballoon {

class Session {
 public:
  using IdSource = std::function<wire::SessionId()>;

  /// What a received header means for its receiver.
  enum class Verdict {
    deliver,      ///< in session and in order: act on it
    ignore,       ///< of an older session, or before the handshake
    reply_hello,  ///< send HELLO now (header from hello()); is_established() says if it stands
    established,  ///< the session stands (again); send HELLO first if must_reply() says so
    violation,    ///< the peer broke the order; the session is over, see violation(); reset() next
  };

  /// `new_id` gives random non-zero ids. Starts with a fresh one.
  explicit Session(IdSource new_id);

  /// Forgets the peer and takes a fresh id: for a channel that was opened anew.
  void reset();

  [[nodiscard]] bool is_established() const { return established_; }
  [[nodiscard]] wire::SessionId id() const { return mine_; }
  [[nodiscard]] wire::SessionId peer() const { return peer_; }

  /// Header for an outgoing HELLO.
  [[nodiscard]] wire::Header hello() const;
  /// Header for the next outgoing frame of an established session; counts it.
  [[nodiscard]] wire::Header next_header();

  /// Judges an incoming header. After `established`, must_reply() says whether the peer still waits
  /// for our HELLO. `restarted()` says whether this HELLO ended an earlier established session:
  /// what was in flight is cancelled.
  [[nodiscard]] Verdict receive(const wire::Header& header);
  [[nodiscard]] bool must_reply() const { return must_reply_; }
  [[nodiscard]] bool restarted() const { return restarted_; }
  [[nodiscard]] const std::string& violation() const { return violation_; }

 private:
  [[nodiscard]] Verdict receive_hello(const wire::Header& header);

  IdSource new_id_;
  wire::SessionId mine_ = 0;
  wire::SessionId peer_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
  bool established_ = false;
  bool must_reply_ = false;
  bool restarted_ = false;
  std::string violation_;
};

}  // namespace fileballoon
