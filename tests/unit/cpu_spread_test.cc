// Whether threads that look without pause end up on CPUs of their own.
#include "uffd/cpu_spread.h"

#include <gtest/gtest.h>
#include <sched.h>

namespace fileballoon::test {
namespace {

using Clock = CpuSpread::Clock;

cpu_set_t usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

// The calling thread on the CPU on which it is, so that nobody but look() can move it there and
// away.
class CpuSpreadTest : public ::testing::Test {
 protected:
  ~CpuSpreadTest() override { (void)::sched_setaffinity(0, sizeof before_, &before_); }

  void stay_here() {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(::sched_getcpu(), &only);
    ASSERT_EQ(::sched_setaffinity(0, sizeof only, &only), 0);
  }

  const cpu_set_t before_ = usable_cpus();
  CpuSpread spread_{2};
  const Clock::time_point now_ = Clock::now();
};

// Lost otherwise: two readers share a CPU, and the thread that they answer has to be woken across
// CPUs, three times as long.
TEST_F(CpuSpreadTest, TheSecondOnACpuGoesToAnotherAndMayStillUseAll) {
  if (CPU_COUNT(&before_) < 2) {
    GTEST_SKIP() << "needs two CPUs";
  }
  // This thread is both. Between the two looks the scheduler may have moved it: then there was
  // nothing to do.
  for (int i = 0; i < 100 && spread_.moves() == 0; ++i) {
    spread_.look(0, now_);
    spread_.look(1, now_ + i * CpuSpread::kRest);
  }
  EXPECT_EQ(spread_.moves(), 1U);
  const cpu_set_t after = usable_cpus();
  EXPECT_TRUE(CPU_EQUAL(&after, &before_));
}

TEST_F(CpuSpreadTest, TheFirstStays) {
  spread_.look(1, now_);
  spread_.look(0, now_);
  EXPECT_EQ(spread_.moves(), 0U);
}

// Lost otherwise: readers that take each other's CPU all the time and do nothing else.
TEST_F(CpuSpreadTest, NobodyIsMovedAgainAtOnce) {
  if (CPU_COUNT(&before_) < 2) {
    GTEST_SKIP() << "needs two CPUs";
  }
  for (int i = 0; i < 100; ++i) {
    spread_.look(0, now_);
    spread_.look(1, now_);
  }
  EXPECT_LE(spread_.moves(), 1U);
}

TEST_F(CpuSpreadTest, OneThatRestsTakesNoCpu) {
  spread_.look(0, now_);
  spread_.rest(0);
  spread_.look(1, now_);
  EXPECT_EQ(spread_.moves(), 0U);
}

TEST_F(CpuSpreadTest, WithOneCpuAllStay) {
  stay_here();
  spread_.look(0, now_);
  spread_.look(1, now_);
  EXPECT_EQ(spread_.moves(), 0U);
}

}  // namespace
}  // namespace fileballoon::test
