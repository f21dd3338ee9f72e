#include "tests/vm/kit/boot_snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <system_error>

#include "fileballoon/unique_fd.h"
#include "tests/eventually.h"
#include "tests/vm/kit/read_file.h"

namespace fileballoon::vmkit {
namespace fs = std::filesystem;
namespace {

// A snapshot is 100 to 200 MiB; the tests have about ten kinds of machine.
constexpr std::size_t kMostKept = 16;
constexpr auto kMigrationLimit = std::chrono::seconds(30);
constexpr auto kMigrationPoll = std::chrono::milliseconds(5);
constexpr std::size_t kCopyStep = std::size_t{1} << 20;

std::string kept_in() { return std::string(FILEBALLOON_BUILD_DIR) + "/tests/vm/boot-snapshots"; }

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

UniqueFd open_file(const std::string& path, int flags) {
  UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC, 0600));
  if (!fd.valid()) fail("cannot open " + path);
  return fd;
}

void copy_range(int from, int to, off_t offset, off_t end) {
  std::vector<char> buffer(kCopyStep);
  while (offset < end) {
    const auto want = std::min(buffer.size(), static_cast<std::size_t>(end - offset));
    const ssize_t got = pread(from, buffer.data(), want, offset);
    if (got <= 0) fail("cannot read a guest's RAM");
    for (ssize_t done = 0; done < got;) {
      const ssize_t put =
          pwrite(to, buffer.data() + done, static_cast<std::size_t>(got - done), offset + done);
      if (put < 0) fail("cannot write a guest's RAM");
      done += put;
    }
    offset += got;
  }
}

// SEEK_DATA and SEEK_HOLE, lseek(2): tmpfs knows them since Linux 3.8.
void copy_data(int from, int to) {
  for (off_t data = lseek(from, 0, SEEK_DATA); data >= 0; data = lseek(from, data, SEEK_DATA)) {
    const off_t hole = lseek(from, data, SEEK_HOLE);
    if (hole < 0) fail("lseek SEEK_HOLE");
    copy_range(from, to, data, hole);
    data = hole;
  }
  if (errno != ENXIO) fail("lseek SEEK_DATA");  // ENXIO: no data beyond
}

boost::json::value must(host::QmpClient& qmp, std::string_view command,
                        boost::json::object arguments = {}) {
  auto answer = qmp.execute(command, std::move(arguments));
  if (!answer) throw std::runtime_error(answer.error().message);
  return *std::move(answer);
}

void leave_shared_ram_out(host::QmpClient& qmp) {
  must(qmp, "migrate-set-capabilities",
       {{"capabilities", boost::json::array{boost::json::object{{"capability", "x-ignore-shared"},
                                                                {"state", true}}}}});
}

void wait_migrated(host::QmpClient& qmp) {
  const auto completed = [&] {
    const auto state = must(qmp, "query-migrate");
    const auto* status = state.as_object().if_contains("status");
    if (status != nullptr && status->as_string() == "failed") {
      throw std::runtime_error("QEMU could not move the state of its devices");
    }
    return status != nullptr && status->as_string() == "completed";
  };
  if (!eventually(completed, kMigrationLimit, kMigrationPoll)) {
    throw std::runtime_error("QEMU takes too long over the state of its devices");
  }
}

void remove_oldest() {
  std::vector<std::pair<fs::file_time_type, fs::path>> kept;
  std::error_code gone;  // by another process
  for (const auto& entry : fs::directory_iterator(kept_in(), gone)) {
    kept.emplace_back(fs::last_write_time(entry.path(), gone), entry.path());
  }
  std::sort(kept.begin(), kept.end());
  while (kept.size() > kMostKept) {
    fs::remove_all(kept.front().second, gone);
    kept.erase(kept.begin());
  }
}

}  // namespace

BootSnapshot::BootSnapshot(const std::vector<std::string>& words,
                           const std::vector<std::string>& files) {
  std::string all;
  for (const std::string& word : words) all += word + '\0';
  for (const std::string& file : files)
    all += std::to_string(std::hash<std::string>()(read_file(file))) + '\0';
  std::ostringstream name;
  name << std::hex << std::hash<std::string>()(all);
  folder_ = kept_in() + "/" + name.str();
}

bool BootSnapshot::exists() const { return fs::exists(folder_); }

void BootSnapshot::save(host::QmpClient& qmp, const std::string& ram) const {
  const std::string unfinished = folder_ + "." + std::to_string(getpid());
  fs::create_directories(unfinished);
  try {
    must(qmp, "stop");
    leave_shared_ram_out(qmp);
    must(qmp, "migrate", {{"uri", "exec:cat > " + unfinished + "/devices"}});
    wait_migrated(qmp);
    const UniqueFd from = open_file(ram, O_RDONLY);
    const UniqueFd to = open_file(unfinished + "/ram", O_WRONLY | O_CREAT);
    copy_data(from.get(), to.get());
    must(qmp, "cont");
    std::error_code taken;  // another process was first, with the same
    fs::rename(unfinished, folder_, taken);
    if (taken) fs::remove_all(unfinished);
    remove_oldest();
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(unfinished, ignored);
    (void)qmp.execute("cont");
    throw;
  }
}

void BootSnapshot::restore(host::QmpClient& qmp, const std::string& ram) const {
  fs::last_write_time(folder_, fs::file_time_type::clock::now());
  {
    const UniqueFd from = open_file(folder_ + "/ram", O_RDONLY);
    const UniqueFd to = open_file(ram, O_RDWR);
    struct stat status {};
    if (fstat(to.get(), &status) != 0) fail("fstat " + ram);
    // What QEMU has put there for a boot goes, so that holes are where they were.
    if (fallocate(to.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, status.st_size) != 0) {
      fail("fallocate " + ram);
    }
    copy_data(from.get(), to.get());
  }
  leave_shared_ram_out(qmp);
  must(qmp, "migrate-incoming", {{"uri", "exec:cat " + folder_ + "/devices"}});
  wait_migrated(qmp);
  must(qmp, "cont");
}

void BootSnapshot::remove() const {
  std::error_code gone;
  fs::remove_all(folder_, gone);
}

}  // namespace fileballoon::vmkit
