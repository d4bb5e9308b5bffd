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

}  // namespace
}  // namespace weft
