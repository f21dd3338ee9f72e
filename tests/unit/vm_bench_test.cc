// The parts of vm_bench that turn samples into numbers: wrong ones would make a mechanism look
// better or worse than it is, and nobody would notice.

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "bench/results_file.h"
#include "bench/vm_bench/proxmox_balloon.h"
#include "bench/vm_bench/series.h"
#include "bench/vm_bench/series_statistics.h"
#include "bench/vm_bench/tracking/staircase_load.h"

namespace fileballoon::bench {
namespace {

/// Idle at 100 MiB for 4 s, a set of 400 MiB for 4 s, then 200 MiB that shows `lag_s` late.
Series sample_series(double lag_s) {
  Series series;
  for (int i = 0; i < 24; ++i) {
    const double time = i * 0.5;
    const std::size_t step = i / 8;
    const double in_step = time - static_cast<double>(step) * 4;
    const double set = step == 0 ? 0 : step == 1 ? 400 : 200;
    const double shown = step == 2 && in_step < lag_s ? 400 : set;
    series.push_back({time, set, 100 + shown, in_step, step});
  }
  return series;
}

TEST(SeriesStatistics, AFootprintThatFollowsAtOnceIsAPerfectLine) {
  const Series series = sample_series(0);
  EXPECT_DOUBLE_EQ(idle_footprint(series, 2), 100);
  EXPECT_NEAR(fit(series, 0).slope, 1, 1e-9);
  EXPECT_NEAR(fit(series, 0).r2, 1, 1e-9);
  EXPECT_DOUBLE_EQ(mean_excess(series, 100), 0);
  ASSERT_EQ(settle_times(series, 100, 64).size(), 1U) << "only the step down counts";
  EXPECT_DOUBLE_EQ(settle_times(series, 100, 64)[0], 0);
  EXPECT_DOUBLE_EQ(peak_footprint(series), 500);
}

TEST(SeriesStatistics, AFootprintThatLagsIsSeenInEveryNumber) {
  const Series series = sample_series(2);
  EXPECT_LT(fit(series, 0).r2, 0.95);
  EXPECT_NEAR(fit(series, 3).r2, 1, 1e-9)
      << "what came late is forgiven only where it is asked for";
  EXPECT_DOUBLE_EQ(settle_times(series, 100, 64)[0], 2);
  EXPECT_NEAR(mean_excess(series, 100), 4 * 200.0 / 16, 1e-9);
}

TEST(SeriesStatistics, AStepThatNeverSettlesCountsWithItsLength) {
  EXPECT_DOUBLE_EQ(settle_times(sample_series(100), 100, 64)[0], 3.5);
}

TEST(SeriesStatistics, AreaIsOfTheWorkloadAlone) {
  Series series;
  for (int i = 0; i <= 20; ++i) {
    series.push_back({i * 0.5, 0, 1024, 0, i < 10 ? 0U : 1U});
  }
  EXPECT_NEAR(area_gib_s(series), 11 * 0.5, 1e-9);
}

TEST(SeriesStatistics, NothingThatVariesGivesNoLine) {
  EXPECT_EQ(fit({}, 0).r2, 0);
  EXPECT_EQ(fit({{0, 5, 7, 0, 0}, {1, 5, 8, 1, 0}}, 0).r2, 0);
  EXPECT_EQ(idle_footprint({}, 2), 0);
  EXPECT_TRUE(settle_times({}, 0, 64).empty());
}

TEST(Series, SurvivesItsResultFile) {
  const Series series = sample_series(1);
  const Series back = series_from_json(to_json(series));
  ASSERT_EQ(back.size(), series.size());
  EXPECT_DOUBLE_EQ(back[17].footprint_mib, series[17].footprint_mib);
  EXPECT_DOUBLE_EQ(back[17].in_step_s, series[17].in_step_s);
  EXPECT_EQ(back[17].step, series[17].step);
  EXPECT_ANY_THROW((void)series_from_json({{"time_s", {1.0}}}));
}

TEST(WorkingSet, GrowsAndFallsAsTheWorkloadSays) {
  const std::vector<InUse> grown{{0.5, 150}, {1.0, 250}, {1.5, 300}};
  EXPECT_DOUBLE_EQ(working_set_at(0, 100, 300, grown), 100);
  EXPECT_DOUBLE_EQ(working_set_at(0.25, 100, 300, grown), 125);
  EXPECT_DOUBLE_EQ(working_set_at(1.25, 100, 300, grown), 275);
  EXPECT_DOUBLE_EQ(working_set_at(9, 100, 300, grown), 300);
  const std::vector<InUse> given{{0, 200}, {1, 100}};
  EXPECT_DOUBLE_EQ(working_set_at(0, 300, 100, given), 200)
      << "files are not read any more at once";
  EXPECT_DOUBLE_EQ(working_set_at(0.5, 300, 100, given), 150);
  EXPECT_DOUBLE_EQ(working_set_at(2, 300, 100, given), 100);
  EXPECT_DOUBLE_EQ(working_set_at(0, 300, 100, {}), 100);
}

TEST(Staircase, StepsAreFixedWork) {
  const std::vector<Step> steps = make_steps({100, 700}, 12);
  ASSERT_EQ(steps.size(), 2U);
  EXPECT_EQ(steps[1].mib, 700U);
  EXPECT_GT(steps[0].passes, steps[1].passes) << "a pass over less takes less time";
  EXPECT_EQ(make_steps({100}, 0)[0].passes, 1U);
}

TEST(ProxmoxBalloon, LeavesAGuestAloneOnAHostWithRoom) {
  const ProxmoxBalloon rule(Bytes::gib(10), Bytes::mib(512), Bytes::gib(1));
  EXPECT_EQ(rule.next(Bytes::gib(1), Bytes::gib(1)), Bytes::gib(1));
  EXPECT_EQ(rule.next(Bytes::mib(600), Bytes::gib(1)), Bytes::mib(700)) << "100 MiB at a time";
}

TEST(ProxmoxBalloon, SqueezesByAtMost100MibARoundDownToTheMinimum) {
  const ProxmoxBalloon rule(Bytes::gib(1), Bytes::mib(512), Bytes::gib(1));
  EXPECT_EQ(rule.next(Bytes::gib(1), Bytes::mib(1000)), Bytes::mib(924));
  EXPECT_EQ(rule.next(Bytes::mib(560), Bytes::mib(1000)), Bytes::mib(512));
  EXPECT_EQ(rule.next(Bytes::mib(512), Bytes::mib(1000)), Bytes::mib(512));
}

TEST(ProxmoxBalloon, LeavesSmallDifferencesAlone) {
  const ProxmoxBalloon rule(Bytes::mib(1000), Bytes::mib(256), Bytes::gib(1));
  EXPECT_EQ(rule.next(Bytes::mib(600), Bytes::mib(805)), Bytes::mib(600));
  EXPECT_EQ(rule.next(Bytes::mib(600), Bytes::mib(795)), Bytes::mib(600));
}

class ResultsFileTest : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    const std::string path = ::testing::TempDir() + "/results-" + std::to_string(::getpid()) + name;
    std::ofstream(path) << text;
    paths_.push_back(path);
    return path;
  }
  static std::string result(const std::string& scenario, const std::string& kernel,
                            const std::string& mode) {
    return R"({"benchmark":"vm_bench","scenario":")" + scenario +
           R"(","machine":{"accel":"tcg","guest_kernel":")" + kernel +
           R"(","host_kernel":"6","qemu":"7.2","cpus":2},"rows":[],"samples":[{"mode":")" + mode +
           R"(","completion_s":2.0}]})";
  }
  void TearDown() override {
    for (const std::string& path : paths_) std::remove(path.c_str());
  }
  std::vector<std::string> paths_;
};

TEST_F(ResultsFileTest, SeveralFilesBecomeOne) {
  const ResultsFile all = read_all_results(
      {write("a", result("build", "6.12", "none")), write("b", result("build", "6.12", "epoch"))});
  EXPECT_EQ(all.scenario, "build");
  EXPECT_EQ(all.machine.accel, "tcg");
  ASSERT_EQ(all.samples.size(), 2U);
  EXPECT_EQ(all.samples[1].at("mode"), "epoch");
}

TEST_F(ResultsFileTest, WhatCannotBeComparedIsRefusedByName) {
  const std::string a = write("a", result("build", "6.12", "none"));
  for (const std::string& other : {write("b", result("tracking", "6.12", "none")),
                                   write("c", result("build", "6.1", "none"))}) {
    try {
      (void)read_all_results({a, other});
      FAIL() << other;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find(other), std::string::npos) << error.what();
    }
  }
}

TEST_F(ResultsFileTest, AFileThatIsNoResultIsNamed) {
  const std::string path = write("d", "{}");
  try {
    (void)read_results(path);
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
  }
  EXPECT_THROW((void)read_results("/nonexistent"), std::runtime_error);
}

}  // namespace
}  // namespace fileballoon::bench
