// A disk below a page store that fails for real: writes and reads that end in EIO. The guest must
// go on, no page may come back as something else, and the operator must be told.
#include "tests/integration/failing_disk.h"

#include "tests/integration/policy_fixture.h"

namespace fileballoon::host {
namespace {

using ::testing::HasSubstr;

class FailingDiskTest : public PagedVm {
 protected:
  void SetUp() override {
    if (!testing::FailingDisk::can_be_made()) {
      GTEST_SKIP() << "a file system that fails needs root and /dev/fuse";
    }
    std::filesystem::create_directory(path("disk"));
    disk_ = std::make_unique<testing::FailingDisk>(path("disk"));
    start_paged_on(disk_->file());
    ASSERT_EQ(ctl({"mem-policy", "vm1", "page-only"}).status, 0);
  }
  void TearDown() override {
    vmm.kill_and_wait();
    daemon_.end(SIGKILL);  // before the disk, which they use
    disk_.reset();
  }
  std::unique_ptr<testing::FailingDisk> disk_;
};

TEST_F(FailingDiskTest, AWriteErrorStopsPageOutUntilTheDiskWorksAgain) {
  disk_->fail_writes(true);
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  ASSERT_TRUE(eventually([&] { return has_event("paging-stopped", "vm1"); }, 30s))
      << json::serialize(stats("vm1"));
  EXPECT_THAT(event("paging-stopped"), HasSubstr("input/output error"));
  ASSERT_TRUE(reaches("blocked"));
  EXPECT_THAT(std::string(memory().at("reason").as_string()),
              HasSubstr("page-out stopped: input/output error"));
  EXPECT_EQ(paged(), Bytes(0));
  expect_pattern();
  disk_->fail_writes(false);
  EXPECT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  EXPECT_TRUE(has_event("paging-resumed", "vm1"));
  expect_pattern();
}

TEST_F(FailingDiskTest, AReadErrorPoisonsThatPageAndNoOther) {
  ASSERT_EQ(ctl({"mem-set", "vm1", "50%"}).status, 0);
  ASSERT_TRUE(reaches("at-target", 30s)) << json::serialize(stats("vm1"));
  disk_->spoil_last_page();
  // No page out meanwhile: its slot stays where it is.
  ASSERT_EQ(ctl({"mem-policy", "vm1", "balloon-then-page", "--timeout", "60"}).status, 0);
  EXPECT_EQ(vmm.ask("survey 0 16384"), "1 0") << "pages lost, and pages that are wrong";
  EXPECT_EQ(vmm.ask("survey 0 16384"), "1 0")
      << "the second touch of it must not get anything else";
  ASSERT_TRUE(eventually([&] { return has_event("page-lost", "vm1"); }));
  EXPECT_THAT(event("page-lost"), HasSubstr("is lost (input/output error)"));
  EXPECT_EQ(paging().at("lost_pages").to_number<int>(), 1);
  EXPECT_EQ(vmm.ask("errors"), "0");
}

}  // namespace
}  // namespace fileballoon::host
