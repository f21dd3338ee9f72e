// KeeperTest: a folder with the socket of one VM's fault keeper, and what a client needs to start
// that keeper. A keeper ends with its VM; the folder goes when its socket is gone.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "tests/eventually.h"
#include "uffd/faultd/client.h"

namespace fileballoon::testing {

class KeeperTest : public ::testing::Test {
 protected:
  KeeperTest() {
    // Beside the build: a store for paged-out frames must not lie on tmpfs, as /tmp may.
    directory_ = std::filesystem::current_path().string() + "/keeper-XXXXXX";
    if (::mkdtemp(directory_.data()) == nullptr) {
      ADD_FAILURE() << "cannot make " << directory_;
    }
  }
  ~KeeperTest() override {
    (void)eventually([&] { return !std::filesystem::exists(socket()); });
    std::error_code gone;  // a keeper that ends removes its sockets at the same time
    std::filesystem::remove_all(directory_, gone);
  }
  [[nodiscard]] std::string directory() const { return directory_; }
  [[nodiscard]] std::string socket() const { return directory_ + "/keeper.sock"; }
  /// A keeper that is only slow, in a sanitizer's build beside others, is not replaced.
  static constexpr std::chrono::milliseconds kPatient{20'000};
  /// For keepers that are to hang.
  static constexpr std::chrono::milliseconds kImpatient{500};
  [[nodiscard]] faultd::FaultdClient::Options options(
      std::chrono::milliseconds patience = kPatient) const {
    faultd::FaultdClient::Options options;
    options.socket = socket();
    options.program = FILEBALLOON_FAULTD;
    options.patience = patience;
    return options;
  }
  /// Its reaper may take a moment.
  [[nodiscard]] static bool ends(pid_t pid) {
    return eventually([&] { return ::kill(pid, 0) != 0; });
  }

 private:
  std::string directory_;
};

}  // namespace fileballoon::testing
