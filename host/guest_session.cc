#include "host/guest_session.h"

#include <fmt/format.h>

#include <utility>

namespace fileballoon::host {

GuestSession::GuestSession(Session::IdSource new_id, const RamLayout& layout, Delegate& delegate)
    : layout_(layout), delegate_(delegate), session_(std::move(new_id)) {}

void GuestSession::open() {
  end_session();
  session_.reset();
  decoder_.restart();
  output_.clear();
  failure_.reset();
  farewell_.reset();
  send_hello();
  heard_ = ignored_ + decoder_.skipped();
}

void GuestSession::send_hello() {
  wire::Hello hello;
  hello.features = backs_frames_ ? wire::kFeaturePopulate : 0;
  wire::encode(session_.hello(), hello, output_);
}

void GuestSession::repeat_hello() {
  const std::uint64_t heard = ignored_ + decoder_.skipped();
  if (!session_.is_established() && !failure_ && output_.empty() && heard != heard_) {
    send_hello();
  }
  heard_ = heard;
}

void GuestSession::close() {
  end_session();
  session_.reset();
  output_.clear();
  farewell_.reset();
}

void GuestSession::end_session() {
  ++generation_;
  if (std::exchange(in_session_, false)) {
    delegate_.on_session_over();
  }
}

bool GuestSession::wants_input() const {
  return !failure_ && open_reports_ < kMaxOpenReports && output_.size() < kMaxOutput;
}

std::size_t GuestSession::receive(std::span<const std::byte> input) {
  std::size_t taken = 0;
  while (wants_input()) {
    taken += decoder_.feed(input.subspan(taken));
    auto next = decoder_.next();
    if (!next) {
      if (taken == input.size()) {
        break;
      }
      continue;  // the decoder dropped what it skipped and has room again
    }
    if (auto* error = std::get_if<wire::DecodeError>(&*next)) {
      fail(error->code, std::move(error->text));
      break;
    }
    handle(std::move(std::get<wire::Frame>(*next)));
  }
  return taken;
}

void GuestSession::handle(wire::Frame frame) {
  const Session::Verdict verdict = session_.receive(frame.header);
  if (verdict == Session::Verdict::ignore) {
    ++ignored_;
    return;
  }
  if (verdict == Session::Verdict::violation) {
    // The session object is out of order already; its peer id still tells the guest whom we mean.
    fail(wire::ErrorCode::sequence, session_.violation());
    return;
  }
  if (const auto* hello = std::get_if<wire::Hello>(&frame.message)) {
    handle_hello(*hello, verdict);
  } else if (auto* report = std::get_if<wire::Report>(&frame.message)) {
    ++open_reports_;
    delegate_.on_report({generation_, frame.header.sequence}, std::move(*report));
  } else if (auto* populate = std::get_if<wire::Populate>(&frame.message)) {
    if (!backs_frames_) {
      fail(wire::ErrorCode::other, "this host does not back frames of this VM on request");
      return;
    }
    ++open_reports_;
    delegate_.on_populate({generation_, frame.header.sequence}, std::move(*populate));
  } else if (const auto* stats = std::get_if<wire::Stats>(&frame.message)) {
    delegate_.on_stats(*stats);
  } else if (const auto* deflated = std::get_if<wire::Deflated>(&frame.message)) {
    delegate_.on_deflated(*deflated);
  } else if (const auto* error = std::get_if<wire::ErrorMessage>(&frame.message)) {
    end_session();
    failure_ = "the guest's agent ended the session: " + error->text;
  } else if (!std::holds_alternative<wire::Unknown>(frame.message)) {
    fail(wire::ErrorCode::malformed, fmt::format("a frame of type {}, which only the host sends",
                                                 static_cast<std::uint16_t>(frame.header.type)));
  }
}

void GuestSession::handle_hello(const wire::Hello& hello, Session::Verdict verdict) {
  // Whatever stood before, this HELLO starts anew; only one that repeats what we know does not.
  const bool repeated = verdict == Session::Verdict::reply_hello && session_.is_established();
  if (!repeated) {
    end_session();
  }
  if (verdict == Session::Verdict::reply_hello || session_.must_reply()) {
    send_hello();
  }
  if (verdict != Session::Verdict::established) {
    return;
  }
  // Only now: an ERROR before the handshake is done would be ignored as one of an older session.
  if (hello.page_size != kPageSize) {
    fail(wire::ErrorCode::page_size,
         fmt::format("the guest has pages of {} bytes; only {} are served", hello.page_size,
                     kPageSize));
    return;
  }
  if (auto mismatch = ram_mismatch(hello)) {
    fail(wire::ErrorCode::ram, std::move(*mismatch));
    return;
  }
  const bool rebooted = boot_id_ && *boot_id_ != hello.boot_id;
  boot_id_ = hello.boot_id;
  limits_due_ = limits_.has_value();
  told_absent_.reset();
  cache_due_ = cache_.has_value();
  in_session_ = true;
  delegate_.on_established(hello, rebooted);
}

std::optional<std::string> GuestSession::ram_mismatch(const wire::Hello& hello) const {
  std::vector<BackingRange> pieces;
  for (const FrameRange& range : hello.ram) {
    pieces.clear();
    if (!layout_.translate(range, pieces)) {
      return fmt::format(
          "the guest says that it has RAM at {:#x}, {} frames, where this VM has none: is the "
          "channel that of another VM? If memory was plugged in since the VM was attached, detach "
          "it "
          "and attach it again",
          range.first.number() * kPageSize, range.count);
    }
  }
  return std::nullopt;
}

void GuestSession::complete(Batch batch, std::vector<wire::RangeOutcome> outcomes) {
  --open_reports_;
  if (batch.generation != generation_ || !in_session_) {
    return;
  }
  send(wire::Ack{batch.sequence, std::move(outcomes)});
}

void GuestSession::complete_populate(Batch batch, std::vector<std::uint32_t> backed) {
  --open_reports_;
  if (batch.generation == generation_ && in_session_) {
    send(wire::Populated{batch.sequence, std::move(backed)});
  }
}

void GuestSession::set_limits(const wire::LimitsMessage& limits) {
  limits_ = limits;
  limits_due_ = true;
}

void GuestSession::set_cache(const wire::CacheOrder& order) {
  cache_ = order;
  cache_due_ = true;
}

bool GuestSession::send_purge(Bytes amount) {
  if (!in_session_ || output_.size() >= kMaxOutput) {
    return false;
  }
  send(wire::Purge{amount});
  return true;
}

void GuestSession::send_host_state(Bytes absent) {
  if (!in_session_ || output_.size() >= kMaxOutput) {
    return;
  }
  const Bytes told = told_absent_.value_or(Bytes(0));
  const Bytes change = absent > told ? absent - told : told - absent;
  if (!told_absent_ || change >= kTellChange) {
    told_absent_ = absent;
    send(wire::HostState{absent});
  }
}

void GuestSession::fail(wire::ErrorCode code, std::string text) {
  if (failure_) {
    return;
  }
  if (session_.peer() != 0) {
    farewell_ = wire::ErrorMessage{code, text};
  }
  end_session();
  failure_ = std::move(text);
}

void GuestSession::send(const wire::Message& message) {
  wire::encode(session_.next_header(), message, output_);
}

bool GuestSession::has_output() const {
  return !output_.empty() || ((limits_due_ || cache_due_) && in_session_) ||
         (farewell_ && open_reports_ == 0);
}

std::vector<std::byte> GuestSession::take_output() {
  if (limits_due_ && in_session_) {
    limits_due_ = false;
    send(*limits_);
  }
  if (cache_due_ && in_session_) {
    cache_due_ = false;
    send(*cache_);
  }
  if (farewell_ && open_reports_ == 0) {
    send(*std::exchange(farewell_, std::nullopt));
  }
  return std::exchange(output_, {});
}

}  // namespace fileballoon::host
