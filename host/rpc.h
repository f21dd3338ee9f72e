// What the control socket's methods take and refuse: parameters read strictly (a missing, unknown
// or wrong one is named), refusals with a code that scripts can tell apart.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fileballoon/bytes.h"

namespace fileballoon::host {

/// Codes of JSON-RPC 2.0, and ours.
enum class RpcCode : int {
  parse_error = -32700,
  invalid_request = -32600,
  method_not_found = -32601,
  invalid_params = -32602,
  refused = -32000,     ///< the request is understood and cannot be done; the message says why
  unknown_vm = -32001,  ///< no VM of that name
};

/// Thrown by methods; becomes the error of the reply.
class RpcFailure : public std::runtime_error {
 public:
  RpcFailure(RpcCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] RpcCode code() const { return code_; }

 private:
  RpcCode code_;
};

/// The parameters of one call.
class RpcParams {
 public:
  explicit RpcParams(const boost::json::object& params) : params_(params) {}

  /// Refuses parameters that are not among `known`.
  void allow_only(std::initializer_list<std::string_view> known) const;
  [[nodiscard]] std::string text(std::string_view key) const;
  [[nodiscard]] std::optional<std::string> optional_text(std::string_view key) const;
  [[nodiscard]] std::int64_t integer(std::string_view key) const;
  [[nodiscard]] std::optional<std::int64_t> optional_integer(std::string_view key) const;
  /// false where it is absent.
  [[nodiscard]] bool flag(std::string_view key) const;
  /// A number of bytes, or a text as parse_size() takes it; percentages are of `whole`, and refused
  /// where there is none.
  [[nodiscard]] Bytes size(std::string_view key, std::optional<Bytes> whole) const;

 private:
  const boost::json::object& params_;
};

}  // namespace fileballoon::host
