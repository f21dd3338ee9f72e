// Limits: what mem-set and mem-floor accept. A limit that should have been refused here would lock
// more of a guest than it has, or silently do nothing.
#include "fileballoon/limits.h"

#include <gtest/gtest.h>

namespace fileballoon {
namespace {

TEST(Limits, AcceptsTheWholeRangeAndAlignsToPages) {
  EXPECT_EQ(make_limits(Bytes::mib(600), Bytes::mib(100), Bytes::gib(1)).value(),
            (Limits{Bytes::mib(600), Bytes::mib(100)}));
  EXPECT_EQ(make_limits(Bytes(0), Bytes(0), Bytes::gib(1)).value(), Limits{});
  EXPECT_EQ(make_limits(Bytes::gib(1), Bytes::gib(1), Bytes::gib(1)).value().floor, Bytes::gib(1));
  EXPECT_EQ(make_limits(Bytes(kPageSize + 1), Bytes(kPageSize - 1), Bytes::gib(1)).value(),
            (Limits{Bytes(kPageSize), Bytes(0)}));
}

TEST(Limits, RefusalsNameTheNumbers) {
  const auto above = make_limits(Bytes::mib(1025), Bytes(0), Bytes::gib(1));
  ASSERT_FALSE(above.has_value());
  EXPECT_NE(above.error().message.find("above the guest's RAM of 1 GiB"), std::string::npos)
      << above.error().message;
  const auto floor = make_limits(Bytes::mib(100), Bytes::mib(200), Bytes::gib(1));
  ASSERT_FALSE(floor.has_value());
  EXPECT_NE(floor.error().message.find("200 MiB"), std::string::npos);
  EXPECT_NE(floor.error().message.find("100 MiB"), std::string::npos);
}

TEST(Limits, AFootprintLeavesTheRestToTheBalloon) {
  EXPECT_EQ(target_for_footprint(Bytes::gib(1), Bytes::mib(400)), Bytes::mib(624));
  EXPECT_EQ(target_for_footprint(Bytes::gib(1), Bytes::gib(2)), Bytes(0));
  EXPECT_EQ(target_for_footprint(Bytes::gib(1), Bytes(1)), Bytes::gib(1) - Bytes(kPageSize))
      << "never a footprint below the one asked for";
}

}  // namespace
}  // namespace fileballoon
