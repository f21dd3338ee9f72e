// AttachRequest: the parameters of `attach`, read strictly. Sizes may be parts of the VM's RAM, so
// they are understood only when the VM has been looked at.
#pragma once

#include <boost/json.hpp>

#include "host/vm.h"

namespace fileballoon::host {

struct AttachRequest {
  /// Throws RpcFailure naming the parameter. `params` must outlive this.
  AttachRequest(const boost::json::object& params, RefaultMode default_refault);

  VmSpec spec;

  /// What the operator wants of the memory of a VM with `ram`. Throws RpcFailure.
  [[nodiscard]] Vm::Wanted wanted(Bytes ram) const;

 private:
  const boost::json::object& params_;
};

}  // namespace fileballoon::host
