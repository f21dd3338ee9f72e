#include "host/rpc.h"

#include <fmt/format.h>

#include <algorithm>

namespace fileballoon::host {
namespace {

[[noreturn]] void bad_params(const std::string& message) {
  throw RpcFailure(RpcCode::invalid_params, message);
}

}  // namespace

void RpcParams::allow_only(std::initializer_list<std::string_view> known) const {
  for (const auto& item : params_) {
    if (std::find(known.begin(), known.end(), std::string_view(item.key())) == known.end()) {
      bad_params(fmt::format("unknown parameter '{}'; known are {}", std::string_view(item.key()),
                             fmt::join(known, ", ")));
    }
  }
}

std::optional<std::string> RpcParams::optional_text(std::string_view key) const {
  const auto* value = params_.if_contains(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_string()) {
    bad_params(fmt::format("parameter '{}' must be a string", key));
  }
  return std::string(value->get_string());
}

std::string RpcParams::text(std::string_view key) const {
  auto value = optional_text(key);
  if (!value) {
    bad_params(fmt::format("parameter '{}' is missing", key));
  }
  return *value;
}

std::optional<std::int64_t> RpcParams::optional_integer(std::string_view key) const {
  const auto* value = params_.if_contains(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_int64()) {
    bad_params(fmt::format("parameter '{}' must be an integer", key));
  }
  return value->get_int64();
}

std::int64_t RpcParams::integer(std::string_view key) const {
  const auto value = optional_integer(key);
  if (!value) {
    bad_params(fmt::format("parameter '{}' is missing", key));
  }
  return *value;
}

bool RpcParams::flag(std::string_view key) const {
  const auto* value = params_.if_contains(key);
  if (value != nullptr && !value->is_bool()) {
    bad_params(fmt::format("parameter '{}' must be true or false", key));
  }
  return value != nullptr && value->get_bool();
}

Bytes RpcParams::size(std::string_view key, std::optional<Bytes> whole) const {
  const auto* value = params_.if_contains(key);
  if (value == nullptr) {
    bad_params(fmt::format("parameter '{}' is missing", key));
  }
  if (value->is_int64() && value->get_int64() >= 0) {
    return Bytes(static_cast<std::uint64_t>(value->get_int64()));
  }
  if (!value->is_string()) {
    bad_params(fmt::format("parameter '{}' must be a number of bytes or a size as text", key));
  }
  const auto& text = value->get_string();
  const Result<Bytes> size = parse_size({text.data(), text.size()}, whole);
  if (!size) {
    bad_params(size.error().message);
  }
  return *size;
}

}  // namespace fileballoon::host
