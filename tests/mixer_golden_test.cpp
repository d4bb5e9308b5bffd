// State mixers against cases made by another program: every mixer-*.safetensors below
// WEFT_GOLDEN_DIR (default: tests/golden), direct recurrences in f64 differentiated automatically.
#include <gtest/gtest.h>

#include "tests/mixer_golden.hpp"

namespace weft {
namespace {

class MixerGolden : public ::testing::TestWithParam<std::tuple<std::string, DType>> {};
INSTANTIATE_TEST_SUITE_P(Files, MixerGolden,
                         ::testing::Combine(::testing::ValuesIn(mixer_golden_cases()),
                                            ::testing::Values(DType::f64, DType::f32)),
                         [](const auto& param) {
                           return concat(test_name(std::get<0>(param.param)), "_",
                                         name(std::get<1>(param.param)));
                         });

TEST_P(MixerGolden, AgreesInEveryOutputAndGradient) {
  const auto& [name, dtype] = GetParam();
  const SafetensorsFile file(golden_folder() + "/" + name);
  expect_agreement(file, run_mixer(mixer_inputs(file), {.dtype = dtype}).result, dtype);
}

TEST(MixerGoldenFiles, AreThere) {
  EXPECT_FALSE(mixer_golden_cases().empty()) << "no mixer-*.safetensors in " << golden_folder();
}

/// The oracle that kernels are held against is held against the files too.
TEST(MixerGoldenFiles, AgreeWithTheNaiveRecurrence) {
  for (const std::string& name : mixer_golden_cases()) {
    SCOPED_TRACE(name);
    const SafetensorsFile file(golden_folder() + "/" + name);
    expect_agreement(file, naive::state_mixer(mixer_inputs(file)), DType::f64);
  }
}

}  // namespace
}  // namespace weft
