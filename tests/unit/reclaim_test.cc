// The guest kernel's reclaim interfaces: if these fail, a guest kernel that lacks one is served
// wrongly or silently, or the commands reach the wrong pages.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "guest-fs/reclaim/linux_cache_kernel.h"
#include "guest-fs/reclaim/lru_gen.h"

namespace fileballoon::guest {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;

// As a Debian guest with Linux 6.12 prints it.
constexpr const char* kLruGen =
    "memcg     1 /\n"
    " node     0\n"
    "          9       5904          0          0 \n"
    "         10       4904       1139      25614 \n"
    "         11       1904         24         61 \n"
    "         12        904          0        500 \n"
    "memcg    37 /system.slice/cron.service\n"
    " node     0\n"
    "          0      90000         12          0 \n"
    "          1      90000          0         77 \n"
    "memcg    52 /balloonfs\n"
    " node     0\n"
    "          0      90000          0      90000 \n"
    "          1      90000          0          0 \n"
    " node     1\n"
    "          4      90000          0          7 \n";

TEST(LruGen, ListsAreReadWithTheOldestGenerationThatHoldsFilePages) {
  const auto lists = parse_lru_gen(kLruGen);
  ASSERT_EQ(lists.size(), 4U);
  EXPECT_EQ(lists[0].cgroup_path, "/");
  EXPECT_EQ(lists[0].list.cgroup, 1U);
  EXPECT_EQ(lists[0].list.view.oldest, 10U);
  EXPECT_EQ(lists[0].list.view.oldest_pages, 25614U);
  EXPECT_EQ(lists[0].list.view.youngest, 12U);
  EXPECT_EQ(lists[0].list.view.file_pages, 26175U);
  EXPECT_EQ(lists[1].cgroup_path, "/system.slice/cron.service");
  EXPECT_EQ(lists[1].list.view.file_pages, 77U);
  EXPECT_EQ(lists[3].list.node, 1U);
  EXPECT_EQ(lists[3].list.cgroup, 52U);
}

TEST(LruGen, SpentGenerationsOfLaterKernelsCountAsEmpty) {
  const auto lists = parse_lru_gen(
      "memcg     1 /\n node     0\n"
      "  3  5904   10   -0 \n  4  904   0   12 \n  5  904   0x   1x\n");
  ASSERT_EQ(lists.size(), 1U);
  EXPECT_EQ(lists[0].list.view.oldest, 4U);
  EXPECT_EQ(lists[0].list.view.file_pages, 13U);
}

TEST(LruGen, AnEmptyListHasItsYoungestGeneration) {
  const auto lists = parse_lru_gen("memcg 1 /\n node 0\n 0 10 0 0\n 1 10 0 0\n");
  ASSERT_EQ(lists.size(), 1U);
  EXPECT_EQ(lists[0].list.view.oldest, 1U);
  EXPECT_EQ(lists[0].list.view.youngest, 1U);
}

// As a Debian guest with Linux 6.12 prints it: what was evicted of tiers 1 to 3 had been read twice
// or more.
TEST(LruGen, TheFullFileSaysHowManyPagesInUseWereEvicted) {
  const auto lists = parse_lru_gen(
      "memcg     1 /\n node     0\n"
      "          7      15224      12003       84808 \n"
      "                     0          0r          0e          0p          0r       2171e          "
      "0p\n"
      "                     1          0r          0e          0p          3r         40e          "
      "0p\n"
      "                     2          0r          9e          0p        527r       5828e          "
      "0p\n"
      "                     3          0r          0e          0p          0r          0e        "
      "507p\n"
      "                                 0x          0x          0x          0x\n"
      "          8       9232          3        1674 \n"
      "                     0          0x          0x          0x          0x          0x          "
      "0x\n"
      "                                 0T          0Y          0F          0A\n");
  ASSERT_EQ(lists.size(), 1U);
  EXPECT_EQ(lists[0].list.view.oldest, 7U);
  EXPECT_EQ(lists[0].list.view.oldest_pages, 84808U);
  EXPECT_EQ(lists[0].list.view.file_pages, 86482U);
  EXPECT_EQ(lists[0].list.evicted_in_use, 5868U);
  EXPECT_FALSE(parse_lru_gen(kLruGen)[0].list.evicted_in_use.has_value());
}

TEST(LruGen, NonsenseIsSkipped) {
  EXPECT_TRUE(parse_lru_gen("").empty());
  EXPECT_TRUE(parse_lru_gen("\n\nmemcg\nnode 3\n 1 2 3 4\n").empty());
}

TEST(LruGen, CommandsNameTheListAndNeverAllowSwapping) {
  const CacheList list{37, 1, {}, {}};
  EXPECT_EQ(age_command(list, 12), "+ 37 1 12 0 1");
  EXPECT_EQ(evict_command(list, 9, 4096), "- 37 1 9 0 4096");
}

TEST(CacheNumbers, AreReadFromVmstatAndPressure) {
  const CacheNumbers numbers = parse_cache_numbers(
      "nr_inactive_file 100\nnr_active_file 20\nnr_mapped 7\nnr_dirty 3\nnr_writeback 2\n"
      "pgpgin 1000\npgfault 30\npgfree 4\nworkingset_refault_anon 9\nworkingset_refault_file 11\n"
      "pgsteal_file 55\n",
      "some avg10=0.00 avg60=0.12 avg300=0.03 total=123456\nfull avg10=0.00 total=99\n");
  EXPECT_EQ(numbers.file, 120U);
  EXPECT_EQ(numbers.mapped, 7U);
  EXPECT_EQ(numbers.dirty, 5U);
  EXPECT_EQ(numbers.activity, 1034U);
  EXPECT_EQ(numbers.refaulted, 11U);
  EXPECT_EQ(numbers.stolen, 55U);
  EXPECT_EQ(numbers.stalled, std::chrono::microseconds(123456));
}

TEST(FindMount, TakesTheTypeTheOptionAndUnescapes) {
  const std::string info =
      "22 1 0:20 / /sys rw - sysfs sysfs rw\n"
      "30 22 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
      "31 22 0:27 / /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,memory\n"
      "32 22 0:28 /sub /bound rw - cgroup2 none rw\n"
      "33 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
  EXPECT_EQ(find_mount(info, "cgroup", "memory"), "/sys/fs/cgroup/mem ory");
  EXPECT_EQ(find_mount(info, "cgroup2"), "/sys/fs/cgroup/unified");
  EXPECT_EQ(find_mount(info, "debugfs"), "");
}

/// A folder that looks like a kernel's files.
class FakeKernel : public testing::Test {
 protected:
  FakeKernel() {
    std::string pattern = testing::TempDir() + "fake-kernel-XXXXXX";
    root_ = ::mkdtemp(pattern.data());
    put("proc/self/cgroup", "0::/\n");
    put("proc/self/mountinfo", "33 22 0:28 / " + root_ + "/cg rw - cgroup2 cgroup2 rw\n");
    put("proc/vmstat", "workingset_refault_file 0\npgsteal_file 0\n");
    put("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    put("proc/swaps", "Filename Type Size Used Priority\n");
    put("sys/kernel/mm/lru_gen/enabled", "0x0007\n");
    put("debug/lru_gen", kLruGen);
    put("cg/cgroup.controllers", "cpu memory pids\n");
    put("cg/cgroup.subtree_control", "");
    put("cg/memory.reclaim", "");
    add_group("balloonfs", "4242");
    add_group("system.slice", "");
    link_executable("self");
    link_executable("4242");
    link_executable("0242");  // what is in the file after a "0" was written over its beginning
  }
  ~FakeKernel() override { std::filesystem::remove_all(root_); }

  void put(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + "/" + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  [[nodiscard]] std::string get(const std::string& path) const {
    return read_file(root_ + "/" + path);
  }
  void remove(const std::string& path) { std::filesystem::remove_all(root_ + "/" + path); }
  void add_group(const std::string& name, const std::string& pids) {
    for (const char* file : {"memory.current", "memory.reclaim", "memory.low"}) {
      put("cg/" + name + "/" + file, "");
    }
    put("cg/" + name + "/cgroup.procs", pids);
  }
  void link_executable(const std::string& pid, const std::string& program = "/usr/sbin/balloonfs") {
    std::filesystem::create_directories(root_ + "/proc/" + pid);
    const std::string link = root_ + "/proc/" + pid + "/exe";
    std::filesystem::remove(link);
    std::filesystem::create_symlink(program, link);
  }
  [[nodiscard]] LinuxCacheKernel kernel() const {
    return LinuxCacheKernel({root_ + "/proc", root_ + "/sys", root_ + "/debug", ""});
  }

  std::string root_;
};

TEST_F(FakeKernel, WithEverythingThereNothingLacks) {
  const LinuxCacheKernel linux = kernel();
  EXPECT_EQ(linux.features().generations_missing, "");
  EXPECT_EQ(linux.features().steps_missing, "");
  EXPECT_EQ(linux.features().balloon_cgroup_missing, "");
  EXPECT_EQ(linux.features().pressure_missing, "");
  EXPECT_EQ(linux.features().refaults_missing, "");
}

TEST_F(FakeKernel, TheBalloonMovesToItsOwnCgroupAndItsListIsLeftOut) {
  LinuxCacheKernel linux = kernel();
  EXPECT_EQ(get("cg/cgroup.subtree_control"), "+memory");
  EXPECT_THAT(get("cg/balloonfs/cgroup.procs"), HasSubstr("0"));
  std::vector<std::uint64_t> cgroups;
  for (const CacheList& list : linux.lists()) {
    cgroups.push_back(list.cgroup);
  }
  EXPECT_THAT(cgroups, ElementsAre(1, 37));
}

TEST_F(FakeKernel, AUnitOfItsOwnIsKept) {
  put("proc/self/cgroup", "0::/system.slice/balloonfs.service\n");
  add_group("system.slice/balloonfs.service", "4242");
  const BalloonCgroup group(
      find_memory_hierarchy(get("proc/self/mountinfo"), get("proc/self/cgroup"), ""),
      root_ + "/proc");
  EXPECT_EQ(group.missing(), "");
  EXPECT_EQ(group.path(), "/system.slice/balloonfs.service");
  EXPECT_EQ(get("cg/cgroup.subtree_control"), "");
}

TEST_F(FakeKernel, AUnitThatIsSharedIsLeft) {
  put("proc/self/cgroup", "0::/user.slice/session-1.scope\n");
  add_group("user.slice/session-1.scope", "4242\n17\n");
  link_executable("17", "/bin/bash");
  const BalloonCgroup group(
      find_memory_hierarchy(get("proc/self/mountinfo"), get("proc/self/cgroup"), ""),
      root_ + "/proc");
  EXPECT_EQ(group.path(), "/balloonfs");
}

TEST_F(FakeKernel, OtherProgramsInTheBalloonsCgroupAreNamed) {
  add_group("balloonfs", "4242\n17\n");
  ::truncate((root_ + "/cg/balloonfs/cgroup.procs").c_str(), 0);
  put("cg/balloonfs/cgroup.procs", "4242\n17\n");
  link_executable("17", "/bin/bash");
  // A file keeps what it held behind the written "0", as a cgroup lists who else lives there.
  EXPECT_THAT(kernel().features().balloon_cgroup_missing, HasSubstr("other programs live in"));
}

TEST_F(FakeKernel, OthersAreTheSiblingsOnTheWayDown) {
  put("proc/self/cgroup", "0::/system.slice/balloonfs.service\n");
  add_group("system.slice/balloonfs.service", "4242");
  add_group("system.slice/cron.service", "");
  add_group("user.slice", "");
  const BalloonCgroup group(
      find_memory_hierarchy(get("proc/self/mountinfo"), get("proc/self/cgroup"), ""),
      root_ + "/proc");
  EXPECT_THAT(group.others(),
              UnorderedElementsAre(root_ + "/cg/balloonfs", root_ + "/cg/user.slice",
                                   root_ + "/cg/system.slice/cron.service"));
}

TEST_F(FakeKernel, CommandsAreWrittenToLruGen) {
  LinuxCacheKernel linux = kernel();
  EXPECT_EQ(linux.age({37, 0, {}, {}}, 1), 0);
  EXPECT_THAT(get("debug/lru_gen"), testing::StartsWith("+ 37 0 1 0 1"));
  EXPECT_EQ(linux.evict({1, 0, {}, {}}, 10, 256).error, 0);
  EXPECT_THAT(get("debug/lru_gen"), testing::StartsWith("- 1 0 10 0 256"));
}

TEST_F(FakeKernel, StepsNeverAskTheRootOfAMultiGenerationalKernel) {
  LinuxCacheKernel linux = kernel();
  EXPECT_EQ(linux.step(256).error, 0);
  EXPECT_EQ(get("cg/system.slice/memory.reclaim"), "1048576 swappiness=0");
  EXPECT_EQ(get("cg/memory.reclaim"), "");
}

TEST_F(FakeKernel, StepsAskEveryOtherCgroupAndSpareTheBalloonWhenTheRootIsAsked) {
  remove("sys/kernel/mm/lru_gen");
  LinuxCacheKernel linux = kernel();
  EXPECT_EQ(linux.step(256).error, 0);
  EXPECT_EQ(get("cg/system.slice/memory.reclaim"), "1048576 swappiness=0");
  EXPECT_EQ(get("cg/memory.reclaim"), "1048576 swappiness=0");
  // "max" while it lasted, then "0" over its first letter.
  EXPECT_EQ(get("cg/balloonfs/memory.low"), "0ax");
  EXPECT_EQ(get("cg/balloonfs/memory.reclaim"), "0 swappiness=0");  // the question for the key only
}

TEST_F(FakeKernel, NoMglruIsNamed) {
  remove("sys/kernel/mm/lru_gen");
  const LinuxCacheKernel linux = kernel();
  EXPECT_THAT(linux.features().generations_missing, HasSubstr("CONFIG_LRU_GEN"));
  const MethodChoice choice = choose_method(CacheMode::proactive, linux.features());
  EXPECT_EQ(choice.method, ReclaimMethod::steps);
  EXPECT_THAT(choice.note, HasSubstr("no multi-generational LRU"));
}

TEST_F(FakeKernel, MglruSwitchedOffIsNamed) {
  put("sys/kernel/mm/lru_gen/enabled", "0x0000\n");
  EXPECT_THAT(kernel().features().generations_missing, HasSubstr("switched off"));
}

TEST_F(FakeKernel, NoDebugfsIsNamed) {
  remove("debug");
  EXPECT_THAT(kernel().features().generations_missing, HasSubstr("debugfs has no lru_gen"));
}

TEST_F(FakeKernel, ABalloonCgroupThatTheKernelDoesNotListIsNotTrusted) {
  put("debug/lru_gen", "memcg 1 /\n node 0\n 0 1 0 5\n 1 1 0 5\n");
  EXPECT_THAT(kernel().features().generations_missing, HasSubstr("does not list"));
}

TEST_F(FakeKernel, NoPsiIsNamed) {
  remove("proc/pressure");
  EXPECT_THAT(kernel().features().pressure_missing, HasSubstr("CONFIG_PSI"));
}

TEST_F(FakeKernel, NoRefaultCountsAreNamed) {
  put("proc/vmstat", "nr_free_pages 3\n");
  EXPECT_THAT(kernel().features().refaults_missing, HasSubstr("workingset_refault_file"));
}

TEST_F(FakeKernel, NoMemoryReclaimIsNamed) {
  remove("cg/balloonfs/memory.reclaim");
  EXPECT_THAT(kernel().features().steps_missing, HasSubstr("no memory.reclaim"));
}

TEST_F(FakeKernel, CgroupV1WorksByGenerationsAndSaysWhyNotBySteps) {
  put("proc/self/mountinfo", "33 22 0:28 / " + root_ + "/cg rw - cgroup cgroup rw,memory\n");
  put("proc/self/cgroup", "5:memory:/\n4:cpu,cpuacct:/\n0::/\n");
  put("cg/balloonfs/memory.usage_in_bytes", "0");
  const LinuxCacheKernel linux = kernel();
  EXPECT_EQ(linux.features().balloon_cgroup_missing, "");
  EXPECT_EQ(linux.features().generations_missing, "");
  EXPECT_THAT(linux.features().steps_missing, HasSubstr("cgroup v1"));
}

TEST_F(FakeKernel, NoMemoryControllerIsNamedAndNothingIsTaken) {
  put("cg/cgroup.controllers", "cpu pids\n");
  const LinuxCacheKernel linux = kernel();
  EXPECT_THAT(linux.features().balloon_cgroup_missing, HasSubstr("no memory controller"));
  EXPECT_EQ(choose_method(CacheMode::epoch, linux.features()).method, ReclaimMethod::none);
}

TEST_F(FakeKernel, AControllerThatStaysOffIsNamed) {
  remove("cg/balloonfs/memory.current");
  EXPECT_THAT(kernel().features().balloon_cgroup_missing, HasSubstr("+memory"));
}

}  // namespace
}  // namespace fileballoon::guest
