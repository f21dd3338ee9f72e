// What operators may do with one attached VM's memory: one function a verb of the control socket.
// Each reads its parameters strictly, refuses with RpcFailure in words for an operator, and answers
// what fileballoonctl shows. Control thread only.
#pragma once

#include <boost/json.hpp>
#include <functional>
#include <string_view>

#include "host/vm.h"

namespace fileballoon::host {

struct VerbContext {
  EventLog& events;
  std::function<void()> save;  ///< has what was changed on disk before the caller is answered
};

using VmVerb = boost::json::value (*)(Vm& vm, const boost::json::object& params,
                                      const VerbContext& context);

/// The verb of that name; null where there is none. All take `name`, the VM.
[[nodiscard]] VmVerb find_vm_verb(std::string_view method);

}  // namespace fileballoon::host
