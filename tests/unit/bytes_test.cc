// Sizes: what a user types must mean exactly one amount or be refused with the reason. A wrong
// reading here is a VM that is squeezed to a thousandth of what its owner asked for.
#include "fileballoon/bytes.h"

#include <gtest/gtest.h>

#include <limits>

namespace fileballoon {
namespace {

constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();

std::uint64_t parsed(std::string_view text, std::optional<Bytes> whole = std::nullopt) {
  const Result<Bytes> result = parse_size(text, whole);
  EXPECT_TRUE(result.has_value()) << text << ": " << (result ? "" : result.error().message);
  return result ? result->count() : 0xdead;
}

std::string refused(std::string_view text, std::optional<Bytes> whole = std::nullopt) {
  const Result<Bytes> result = parse_size(text, whole);
  EXPECT_FALSE(result.has_value()) << "'" << text << "' was taken as " << result->count();
  return result ? "" : result.error().message;
}

TEST(ParseSize, PlainNumbersAreBytes) {
  EXPECT_EQ(parsed("0"), 0U);
  EXPECT_EQ(parsed("1"), 1U);
  EXPECT_EQ(parsed("4096B"), 4096U);
  EXPECT_EQ(parsed("18446744073709551615"), kMax);
}

TEST(ParseSize, SuffixesAreBinaryInAnySpelling) {
  for (const char* text : {"600M", "600m", "600MB", "600MiB", "600 MiB", " 600mib ", "600 mb"}) {
    EXPECT_EQ(parsed(text), 600ULL << 20) << text;
  }
  EXPECT_EQ(parsed("3K"), 3ULL << 10);
  EXPECT_EQ(parsed("3G"), 3ULL << 30);
  EXPECT_EQ(parsed("3T"), 3ULL << 40);
}

TEST(ParseSize, FractionsAreRoundedDownToBytes) {
  EXPECT_EQ(parsed("1.5G"), 3ULL << 29);
  EXPECT_EQ(parsed(".5K"), 512U);
  EXPECT_EQ(parsed("2.K"), 2048U);
  EXPECT_EQ(parsed("0.0001K"), 0U);
  EXPECT_EQ(parsed("1.9"), 1U);
}

TEST(ParseSize, PercentOfTheWholeIsPageAligned) {
  EXPECT_EQ(parsed("25%", Bytes::gib(1)), 256ULL << 20);
  EXPECT_EQ(parsed("100 %", Bytes(kMax)), kMax / kPageSize * kPageSize);
  EXPECT_EQ(parsed("0%", Bytes::gib(1)), 0U);
  EXPECT_EQ(parsed("33.3%", Bytes::mib(1)) % kPageSize, 0U);
  EXPECT_EQ(parsed("50%", Bytes(0)), 0U);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", "   ", "M", ".", "..5", "1.2.3M", "-5", "+5", "1e9", "0x10", "inf",
                           "nan", "5X", "5MM", "5Mi", "5 M B", "5M 6", "1,5G", "12MiBs"}) {
    EXPECT_NE(refused(text).find("'" + std::string(text) + "'"), std::string::npos) << text;
  }
  EXPECT_NE(refused("abc").find("suffix K, M, G or T"), std::string::npos) << "names the remedy";
}

TEST(ParseSize, RefusesOverflowInsteadOfWrapping) {
  EXPECT_NE(refused("18446744073709551616").find("larger than any memory"), std::string::npos);
  EXPECT_NE(refused("16777216T").find("larger"), std::string::npos);
  EXPECT_EQ(parsed("16777215T"), 16777215ULL << 40);
  EXPECT_NE(refused("16777216.0T").find("larger"), std::string::npos);
  const std::string long_number(400, '9');
  EXPECT_NE(refused(long_number + "G").find("larger"), std::string::npos);
  EXPECT_NE(refused(long_number + ".5G").find("larger"), std::string::npos);
}

TEST(ParseSize, RefusesMeaninglessPercentages) {
  EXPECT_NE(refused("25%").find("no meaning here"), std::string::npos);
  EXPECT_NE(refused("101%", Bytes::gib(1)).find("more than 100 %"), std::string::npos);
  EXPECT_NE(refused(std::string(400, '9') + "%", Bytes::gib(1)).find("100 %"), std::string::npos);
}

TEST(BytesToString, ShortAndInTheUnitAPersonWouldUse) {
  EXPECT_EQ(to_string(Bytes(0)), "0 B");
  EXPECT_EQ(to_string(Bytes(1023)), "1023 B");
  EXPECT_EQ(to_string(Bytes::mib(600)), "600 MiB");
  EXPECT_EQ(to_string(Bytes::mib(1536)), "1.5 GiB");
  EXPECT_EQ(to_string(Bytes(1025)), "1 KiB");
}

TEST(BytesToString, RoundsUpIntoTheNextUnit) {
  EXPECT_EQ(to_string(Bytes((1ULL << 30) - 1)), "1 GiB");
  EXPECT_EQ(to_string(Bytes(kMax)), "16777216 TiB");
}

TEST(BytesToString, WhatItPrintsParsesBackToNearlyTheSame) {
  for (std::uint64_t n = 1; n < (1ULL << 50); n = n * 3 + 7) {
    const double back = static_cast<double>(parsed(to_string(Bytes(n))));
    EXPECT_NEAR(back / static_cast<double>(n), 1.0, 0.05) << n;
  }
}

TEST(Bytes, SubtractionStopsAtZero) {
  EXPECT_EQ((Bytes(5) - Bytes(7)).count(), 0U);
  EXPECT_EQ((Bytes(7) - Bytes(5)).count(), 2U);
}

TEST(Bytes, PagesRoundDown) {
  EXPECT_EQ(Bytes(2 * kPageSize - 1).whole_pages(), 1U);
  EXPECT_EQ(Bytes(2 * kPageSize - 1).page_floor(), Bytes(kPageSize));
  EXPECT_EQ(Bytes::pages(3), Bytes(3 * kPageSize));
}

}  // namespace
}  // namespace fileballoon
