#include "bench/vm_bench/mode.h"

#include <stdexcept>

#include "bench/vm_bench/fileballoon_mode.h"
#include "bench/vm_bench/peer_modes.h"

namespace fileballoon::bench {

const std::vector<std::string>& mode_names() {
  static const std::vector<std::string> names{"none",
                                              "fileballoon",
                                              "fileballoon-uffd",
                                              "virtio-balloon",
                                              "free-page-reporting",
                                              "virtio-balloon-stats",
                                              "free-page-reporting-drop-caches",
                                              "fileballoon-off",
                                              "fileballoon-unmapped-first",
                                              "fileballoon-proactive",
                                              "fileballoon-epoch"};
  return names;
}

std::unique_ptr<Mode> make_mode(const std::string& name) {
  if (name == "none") return std::make_unique<NoneMode>();
  if (name == "fileballoon") return std::make_unique<FileballoonMode>("kernel");
  if (name == "fileballoon-uffd") return std::make_unique<FileballoonMode>("uffd");
  if (name == "virtio-balloon") return std::make_unique<VirtioBalloonMode>();
  if (name == "free-page-reporting") return std::make_unique<FreePageReportingMode>();
  if (name == "virtio-balloon-stats") return std::make_unique<VirtioBalloonStatsMode>();
  if (name == "free-page-reporting-drop-caches") return std::make_unique<DropCachesMode>();
  if (name == "fileballoon-off") return std::make_unique<FileballoonMode>("kernel", "off");
  if (name == "fileballoon-unmapped-first") {
    return std::make_unique<FileballoonMode>("kernel", "unmapped-first");
  }
  if (name == "fileballoon-proactive") {
    return std::make_unique<FileballoonMode>("kernel", "proactive");
  }
  if (name == "fileballoon-epoch") return std::make_unique<FileballoonMode>("kernel", "epoch");
  std::string known;
  for (const std::string& one : mode_names()) known += (known.empty() ? "" : ", ") + one;
  throw std::runtime_error("there is no mode " + name + "; known are " + known);
}

}  // namespace fileballoon::bench
