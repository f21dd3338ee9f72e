// run_on(): a function that blocks, run on a pool of threads while a coroutine of the control
// thread waits for its result.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <memory>
#include <type_traits>
#include <utility>

#include "host/asio.h"

namespace fileballoon::host {

/// The result of `work()`, which runs on `pool` and must not throw. The caller goes on where it
/// was. `work` is moved from, and may outlive the caller, so it owns what it uses. It is taken by
/// reference so that only a named object compiles: GCC 12 copies the captures of a temporary in a
/// co_await bitwise, and frees them twice.
template <class Work>
[[nodiscard]] asio::awaitable<std::invoke_result_t<Work>> run_on(asio::thread_pool& pool,
                                                                 Work& work) {
  using Outcome = std::invoke_result_t<Work>;
  auto task = [work = std::move(work)]() mutable -> asio::awaitable<std::unique_ptr<Outcome>> {
    co_return std::make_unique<Outcome>(work());
  };
  auto running = asio::co_spawn(pool, std::move(task), asio::use_awaitable);
  auto outcome = co_await std::move(running);
  co_return std::move(*outcome);
}

}  // namespace fileballoon::host
