#include "tests/vm/kit/guest_client.h"

#include <poll.h>

#include <boost/json/serialize.hpp>
#include <stdexcept>

namespace fileballoon::vmkit {
namespace {

using Clock = std::chrono::steady_clock;

std::chrono::milliseconds until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
  return std::max(left, std::chrono::milliseconds(0));
}

}  // namespace

bool GuestClient::pump(Timeout timeout) {
  auto line = port_.receive(timeout);
  if (!line) {
    if (port_.is_closed()) {
      throw std::runtime_error("the guest's test port is closed: " + line.error().message);
    }
    return false;
  }
  const Object& message = line->as_object();
  if (message.contains("event")) {
    ready_ = true;
    boot_id_ = std::string(message.at("boot_id").as_string());
    boot_seconds_ = message.at("uptime_s").to_number<double>();
    answers_.clear();  // of the boot before
  } else if (const auto* id = message.if_contains("id")) {
    answers_[id->to_number<std::int64_t>()] = message;
  }
  return true;
}

bool GuestClient::wait_ready(Timeout timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!ready_) {
    if (!pump(until(deadline)) && Clock::now() >= deadline) return false;
  }
  ready_ = false;
  return true;
}

GuestClient::Ticket GuestClient::start(std::string_view verb, Object arguments) {
  Ticket ticket{++last_id_, std::string(verb)};
  Object request{{"id", ticket.id}, {"verb", verb}};
  for (auto& field : arguments) request[field.key()] = std::move(field.value());
  const auto sent = port_.send(request);
  if (!sent) throw std::runtime_error("cannot send " + ticket.verb + ": " + sent.error().message);
  return ticket;
}

std::optional<GuestClient::Object> GuestClient::take(const Ticket& ticket) {
  while (!answers_.contains(ticket.id) && pump(Timeout(0))) {
  }
  const auto found = answers_.find(ticket.id);
  if (found == answers_.end()) return std::nullopt;
  const Object answer = std::move(found->second);
  answers_.erase(found);
  if (const auto* error = answer.if_contains("error")) {
    throw std::runtime_error("guest, " + ticket.verb + ": " + std::string(error->as_string()));
  }
  return answer.at("result").as_object();
}

GuestClient::Object GuestClient::wait(const Ticket& ticket, Timeout timeout) {
  const auto deadline = Clock::now() + timeout;
  while (true) {
    if (auto answer = take(ticket)) return *std::move(answer);
    if (Clock::now() >= deadline) {
      throw std::runtime_error("guest, " + ticket.verb + ": no answer in " +
                               std::to_string(timeout.count()) + " ms");
    }
    (void)pump(until(deadline));
  }
}

GuestClient::Object GuestClient::call(std::string_view verb, Object arguments, Timeout timeout) {
  return wait(start(verb, std::move(arguments)), timeout);
}

double GuestClient::fill(const std::string& name, Bytes size, Timeout timeout) {
  return call("fill", {{"name", name}, {"size", size.count()}}, timeout)
      .at("fill_s")
      .to_number<double>();
}

std::uint64_t GuestClient::check(const std::string& name, Timeout timeout) {
  return call("check", {{"name", name}}, timeout).at("errors").to_number<std::uint64_t>();
}

void GuestClient::drop(const std::string& name) { call("drop", {{"name", name}}); }

void GuestClient::touch_and_free(Bytes size, Timeout timeout) {
  call("touch", {{"size", size.count()}}, timeout);
}

std::string GuestClient::shell(const std::string& command, Timeout timeout) {
  const Object result = call("run", {{"command", command}}, timeout);
  std::string output(result.at("output").as_string());
  if (result.at("status").to_number<int>() != 0) {
    throw std::runtime_error("guest: \"" + command + "\" failed: " + output);
  }
  return output;
}

std::string GuestClient::get_file(const std::string& path) {
  return std::string(call("get", {{"path", path}}).at("text").as_string());
}

void GuestClient::put_file(const std::string& path, const std::string& text) {
  call("put", {{"path", path}, {"text", text}});
}

std::uint64_t GuestClient::vmstat(const std::string& name) {
  const Object numbers = call("numbers");
  const auto* value = numbers.at("vmstat").as_object().if_contains(name);
  return value == nullptr ? 0 : value->to_number<std::uint64_t>();
}

Bytes GuestClient::meminfo(const std::string& name) {
  return Bytes(call("meminfo").at(name).to_number<std::uint64_t>() << 10);
}

}  // namespace fileballoon::vmkit
