// The write budget: flash that is written too much dies; a budget that a clock jump or a restart
// refills is none.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "uffd/pager/write_budget.h"

namespace fileballoon {
namespace {

using std::chrono::hours;

class WriteBudgetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "budget.XXXXXX";
    directory_ = ::mkdtemp(pattern.data());
    file_ = directory_ + "/budget";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  /// Day 20,000 at 12:00, `wall` and `steady` later.
  static WriteBudget::Now at(hours wall, hours steady) {
    return {std::chrono::system_clock::time_point(hours(24 * 20000 + 12) + wall),
            std::chrono::steady_clock::time_point(hours(100) + steady)};
  }
  static WriteBudget::Now at(hours both) { return at(both, both); }

  std::unique_ptr<WriteBudget> open(WriteBudget::Now now) {
    return WriteBudget::open(file_, Bytes::gib(1), now).value();
  }

  std::string directory_;
  std::string file_;
};

TEST_F(WriteBudgetTest, EndsAndComesBackTheNextDay) {
  auto budget = open(at(hours(0)));
  EXPECT_TRUE(budget->charge(Bytes::mib(1000)));
  EXPECT_FALSE(budget->charge(Bytes::mib(25)));
  EXPECT_TRUE(budget->charge(Bytes::mib(24)));
  EXPECT_EQ(budget->left().count(), 0U);
  budget->advance(at(hours(11)));
  EXPECT_FALSE(budget->charge(Bytes(kPageSize)));
  budget->advance(at(hours(13)));
  EXPECT_EQ(budget->left(), Bytes::gib(1));
  EXPECT_TRUE(budget->charge(Bytes::gib(1)));
}

TEST_F(WriteBudgetTest, ARestartRefillsNothing) {
  ASSERT_TRUE(open(at(hours(0)))->charge(Bytes::mib(900)));
  auto again = open(at(hours(1)));
  EXPECT_LE(again->left(), Bytes::mib(124));
  // Charged ahead, so that a crash forgets nothing; what that costs is bounded.
  EXPECT_GE(again->left() + WriteBudget::kStep, Bytes::mib(124));
}

TEST_F(WriteBudgetTest, JumpsOfTheClockRefillAtMostOnce) {
  auto budget = open(at(hours(0)));
  std::uint64_t refills = 0;
  for (int jump = 0; jump < 100; ++jump) {
    (void)budget->charge(budget->left());
    // Ten days forth, then back, while one real minute passes.
    budget->advance(at(hours(240), hours(0)));
    refills += budget->left().count() > 0 ? 1 : 0;
    (void)budget->charge(budget->left());
    budget->advance(at(hours(0), hours(0)));
    refills += budget->left().count() > 0 ? 1 : 0;
  }
  EXPECT_LE(refills, 1U);
}

TEST_F(WriteBudgetTest, AClockThatWasWrongDoesNotFreezeTheBudget) {
  auto budget = open(at(hours(24 * 365)));  // a year ahead
  ASSERT_TRUE(budget->charge(Bytes::gib(1)));
  budget->advance(at(hours(0), hours(24 * 365 + 1)));  // corrected
  EXPECT_FALSE(budget->charge(Bytes(kPageSize)));
  budget->advance(at(hours(24), hours(24 * 365 + 25)));
  EXPECT_EQ(budget->left(), Bytes::gib(1));
}

TEST_F(WriteBudgetTest, ADamagedStateCountsAsUsedUp) {
  std::ofstream(file_) << "fileballoon-write-budget 1 day 20000 used";
  auto budget = open(at(hours(0)));
  EXPECT_FALSE(budget->charge(Bytes(kPageSize)));
  budget->advance(at(hours(24)));
  EXPECT_TRUE(budget->charge(Bytes(kPageSize)));
}

TEST_F(WriteBudgetTest, AStateThatCannotBeSavedIsRefusedByName) {
  const auto budget = WriteBudget::open(directory_ + "/no/such", Bytes::gib(1), at(hours(0)));
  ASSERT_FALSE(budget);
  EXPECT_NE(budget.error().message.find("/no/such"), std::string::npos);
}

TEST_F(WriteBudgetTest, StopsWhenTheStateCanNoLongerBeSaved) {
  auto budget = open(at(hours(0)));
  std::filesystem::remove_all(directory_);
  EXPECT_FALSE(budget->charge(Bytes::mib(1)));
  EXPECT_NE(budget->error().find(file_), std::string::npos);
}

}  // namespace
}  // namespace fileballoon
