// Result<T>: a value or an Error that says, in one sentence for a person, what was wrong and what
// to do about it. Used by everything that parses input; hot paths return enumerations instead.
#pragma once

#include <boost/system/result.hpp>
#include <stdexcept>
#include <string>
#include <utility>

namespace fileballoon {

/// What went wrong, naming the thing and the remedy.
struct Error {
  std::string message;
};

/// Found by boost::system::result when value() is called on an error.
[[noreturn]] inline void throw_exception_from_error(const Error& error,
                                                    const boost::source_location&) {
  throw std::runtime_error(error.message);
}

template <class T>
using Result = boost::system::result<T, Error>;

}  // namespace fileballoon
