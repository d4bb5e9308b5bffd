// Numbers with units, right and wrong.
#include "launch/quantity.hpp"

#include <gtest/gtest.h>

#include "src/core/check.hpp"

namespace weft {
namespace {

TEST(Quantity, HasAPrefixAndAUnit) {
  const std::tuple<const char*, const char*, double> right[] = {{"40GiB", "B", 42949672960.0},
                                                                {"40GB", "B", 40e9},
                                                                {"0B", "B", 0},
                                                                {"1.5KiB", "B", 1536},
                                                                {"2e3B", "B", 2000},
                                                                {"100TFLOP/s", "FLOP/s", 100e12},
                                                                {"10us", "s", 10e-6},
                                                                {"0.25ms", "s", 0.25e-3},
                                                                {"3s", "s", 3},
                                                                {"2TiB/s", "B/s", 2199023255552.0}};
  for (const auto& [text, unit, value] : right) {
    EXPECT_DOUBLE_EQ(parse_quantity("--flag", text, unit), value) << text;
  }
}

TEST(Quantity, MistakesAreNamed) {
  for (const char* text : {"", "40", "B", "GiB", "40Gi", "40GiBs", "40 GiB", "-1B", "-0B", "nanB",
                           "infB", "1e400B", "0x10B", "40XB", "40gib", "4,0B", "40GiB\n"}) {
    try {
      parse_quantity("--memory", text, "B");
      ADD_FAILURE() << "'" << text << "' was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      const std::string what = error.what();
      EXPECT_NE(what.find("--memory: expected a number and the unit B"), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    }
  }
}

TEST(Lengths, ListsAndRangesThatDouble) {
  using Lengths = std::vector<int64_t>;
  const auto lengths = [](const char* text) { return parse_lengths("--seq", text); };
  EXPECT_EQ(lengths("4096"), (Lengths{4096}));
  EXPECT_EQ(lengths("8k,100,1M"), (Lengths{100, 8192, 1048576}));
  EXPECT_EQ(lengths("32k..256k"), (Lengths{32768, 65536, 131072, 262144}));
  EXPECT_EQ(lengths("3..12,6..24,5..5"), (Lengths{3, 5, 6, 12, 24}));
  EXPECT_EQ(lengths("1..512M").size(), 30u);
  EXPECT_EQ(lengths("1000000000"), (Lengths{1000000000}));
}

TEST(Lengths, MistakesAreNamed) {
  for (const char* text : {"",       ",",       "4096,",      "0",          "-4",
                           "+4",     "4.5k",    "1e3",        "k",          "32K",
                           "1Mi",    "1G",      "1000000001", "954M",       "99999999999999999999",
                           "32k..",  "..32k",   "32k...64k",  "1k..2k..4k", "64k..32k",
                           "1k..3k", "32k 64k", "0..8"}) {
    try {
      parse_lengths("--seq", text);
      ADD_FAILURE() << "'" << text << "' was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      EXPECT_EQ(std::string(error.what()).find("--seq: expected "), 0u) << error.what();
    }
  }
}

}  // namespace
}  // namespace weft
