#include "fileballoon/session.h"

#include <utility>

namespace fileballoon {

Session::Session(IdSource new_id) : new_id_(std::move(new_id)) { reset(); }

void Session::reset() {
  mine_ = new_id_();
  peer_ = 0;
  sent_ = 0;
  received_ = 0;
  established_ = false;
  must_reply_ = false;
  restarted_ = false;
  violation_.clear();
}

wire::Header Session::hello() const {
  wire::Header header;
  header.from = mine_;
  header.to = peer_;
  header.sequence = established_ ? 1 : 0;
  return header;
}

wire::Header Session::next_header() {
  wire::Header header;
  header.from = mine_;
  header.to = peer_;
  header.sequence = ++sent_;
  return header;
}

Session::Verdict Session::receive(const wire::Header& header) {
  must_reply_ = false;
  restarted_ = false;
  if (header.from == 0 || header.from == mine_) {
    return Verdict::ignore;  // no session at all, or our own words from a channel that echoes
  }
  if (header.type == wire::Type::hello) {
    return receive_hello(header);
  }
  if (!established_ || header.from != peer_ || header.to != mine_) {
    return Verdict::ignore;
  }
  if (header.sequence != received_ + 1) {
    violation_ = "frame " + std::to_string(header.sequence) + " arrived where " +
                 std::to_string(received_ + 1) + " was due";
    established_ = false;
    return Verdict::violation;
  }
  ++received_;
  return Verdict::deliver;
}

Session::Verdict Session::receive_hello(const wire::Header& header) {
  const bool peer_waits = header.sequence == 0;
  if (header.to == mine_) {
    if (established_ && header.from == peer_) {
      // A copy of what we know, from both sides opening at once. Where the peer still waits, our
      // last HELLO was lost; answering only those who wait cannot go round in circles, since the
      // answer says that we do not.
      return peer_waits ? Verdict::reply_hello : Verdict::ignore;
    }
    must_reply_ = peer_waits || header.from != peer_;
    restarted_ = established_;  // with an id of the peer that is older or newer than this one
    peer_ = header.from;
    sent_ = 0;
    received_ = 0;
    established_ = true;
    return Verdict::established;
  }
  if (established_) {
    restarted_ = true;
    mine_ = new_id_();
    established_ = false;
  }
  peer_ = header.from;
  sent_ = 0;
  received_ = 0;
  return Verdict::reply_hello;
}

}  // namespace fileballoon
