// What benchmarks write is read by scripts: field names, nulls and the merging of repetitions must
// be what docs/testing.md says.

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "bench/merge_runs.h"
#include "bench/report.h"

namespace fileballoon::bench {
namespace {

TEST(BenchReport, JsonHasBenchmarkMachineAndRows) {
  Report report("sample");
  report.machine().accel = "tcg";
  report.set("scenario", "inflate");
  report.add({{"mode", "none"}, {"fill_s", 1.5}});
  const auto json = report.to_json();
  EXPECT_EQ(json.at("benchmark"), "sample");
  EXPECT_EQ(json.at("machine").at("accel"), "tcg");
  EXPECT_TRUE(json.at("machine").at("qemu").is_null()) << "no VM was run, so there is none";
  EXPECT_FALSE(json.at("machine").at("host_kernel").as_string().empty());
  EXPECT_GT(json.at("machine").at("cpus").to_number<int>(), 0);
  EXPECT_EQ(json.at("scenario"), "inflate");
  EXPECT_EQ(json.at("rows").as_array().size(), 1U);
  EXPECT_EQ(json.at("rows").at(0).at("fill_s"), 1.5);
}

TEST(BenchReport, WhatIsNoNumberIsNullInJsonAndADashInTheTable) {
  Report report("sample");
  report.add({{"mode", "none"}, {"ratio", std::numeric_limits<double>::infinity()}});
  EXPECT_TRUE(report.to_json().at("rows").at(0).at("ratio").is_null());
  std::ostringstream table;
  report.print_table(table);
  EXPECT_EQ(table.str(), "mode  ratio\nnone      -\n");
}

TEST(BenchReport, TableTakesColumnsInTheOrderAskedFor) {
  Report report("sample");
  report.add({{"mode", "a"}, {"n", 7}, {"x", 0.5}});
  report.add({{"mode", "longer"}, {"n", 12}});
  std::ostringstream table;
  report.print_table(table, {"n", "mode", "x"});
  EXPECT_EQ(table.str(), " n  mode        x\n 7  a       0.500\n12  longer      -\n");
}

TEST(BenchReport, WritesOneObjectToAFileAndNamesAFileThatCannotBeWritten) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("report-" + std::to_string(::getpid()))).string();
  Report report("sample");
  report.write_json(path);
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  std::remove(path.c_str());
  EXPECT_EQ(boost::json::parse(text.str()).at("benchmark"), "sample");
  try {
    report.write_json("/nonexistent/report.json");
    FAIL();
  } catch (const std::exception& error) {
    EXPECT_NE(std::string(error.what()).find("/nonexistent/report.json"), std::string::npos);
  }
}

TEST(MergeRuns, MediansPerModeAndMemory) {
  const std::vector<Row> rows{{{"mode", "a"}, {"memory", "touched"}, {"s", 3.0}, {"run", 1}},
                              {{"mode", "b"}, {"memory", "touched"}, {"s", 9.0}, {"run", 1}},
                              {{"mode", "a"}, {"memory", "touched"}, {"s", 1.0}, {"run", 2}},
                              {{"mode", "a"}, {"memory", "untouched"}, {"s", 8.0}, {"run", 2}},
                              {{"mode", "a"}, {"memory", "touched"}, {"s", 100.0}, {"run", 3}}};
  const auto merged = merge_runs(rows);
  ASSERT_EQ(merged.size(), 3U);
  EXPECT_EQ(merged[0].at("s"), 3.0);
  EXPECT_EQ(merged[0].at("runs"), 3);
  EXPECT_FALSE(merged[0].contains("run"));
  EXPECT_EQ(merged[1].at("mode"), "b");
  EXPECT_EQ(merged[2].at("memory"), "untouched");
}

TEST(MergeRuns, OneLostPageIsNotHiddenByAMedian) {
  const auto merged = merge_runs({{{"mode", "a"}, {"pattern_errors", 0}, {"oom_kills", 0}},
                                  {{"mode", "a"}, {"pattern_errors", 1}, {"oom_kills", 0}},
                                  {{"mode", "a"}, {"pattern_errors", 0}, {"oom_kills", 2}}});
  EXPECT_EQ(merged.at(0).at("pattern_errors"), 1);
  EXPECT_EQ(merged.at(0).at("oom_kills"), 2);
}

TEST(MergeRuns, NullsAreLeftOutOfTheMedian) {
  const auto merged = merge_runs({{{"mode", "a"}, {"fill_s", nullptr}},
                                  {{"mode", "a"}, {"fill_s", 2.0}},
                                  {{"mode", "a"}, {"fill_s", 4.0}}});
  EXPECT_EQ(merged.at(0).at("fill_s"), 3.0);
}

}  // namespace
}  // namespace fileballoon::bench
