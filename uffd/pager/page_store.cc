#include "uffd/pager/page_store.h"

namespace fileballoon {

std::string_view to_string(StoreStatus status) {
  switch (status) {
    case StoreStatus::ok:
      return "ok";
    case StoreStatus::full:
      return "the store is full";
    case StoreStatus::rejected:
      return "not worth storing";
    case StoreStatus::over_budget:
      return "today's write budget is used up";
    case StoreStatus::io_error:
      return "input/output error";
    case StoreStatus::corrupt:
      return "checksum mismatch";
    case StoreStatus::unseen:
      return "the kernel does not show which pages are in use; the keeper needs CAP_SYS_NICE and "
             "the "
             "right to trace the VM, and guest RAM must not be locked (QEMU: mem-lock=on)";
  }
  return "unknown";
}

}  // namespace fileballoon
