// State mixers against cases made by another program: every mixer-*.safetensors below
// WEFT_GOLDEN_DIR (default: tests/golden), direct recurrences in f64 differentiated automatically.
#include <gtest/gtest.h>

#include <algorithm>

#include "launch/safetensors.hpp"
#include "tests/golden_cases.hpp"
#include "tests/state_mixer_testing.hpp"

namespace weft {
namespace {

/// The values of a tensor, none where the file has no such tensor.
template <class T = double>
std::vector<T> read(const SafetensorsFile& file, const std::string& tensor) {
  if (!file.contains(tensor)) return {};
  int64_t numel = 1;
  for (const int64_t d : file.entry(tensor).shape) numel *= d;
  std::vector<T> out(numel);
  file.read<T>(tensor, out);
  return out;
}

naive::StateMixerInputs inputs(const SafetensorsFile& file) {
  naive::StateMixerInputs in;
  const std::string kind = file.metadata().at("kind");
  const auto* known = std::find_if(std::begin(kStateKinds), std::end(kStateKinds),
                                   [&](StateKind k) { return kind == name(k); });
  WEFT_CHECK(known != std::end(kStateKinds), file.path(), ": kind ", kind);
  in.kind = *known;
  const std::vector<int64_t>& q = file.entry("q").shape;
  in.batch = q[0], in.tokens = q[1], in.heads = q[2], in.key_dim = q[3];
  in.value_dim = file.entry("v").shape[3];
  in.scale = std::stod(file.metadata().at("scale"));
  in.q = read(file, "q");
  in.k = read(file, "k");
  in.v = read(file, "v");
  in.log_decay = read(file, "g");
  in.beta = read(file, "beta");
  in.h0 = read(file, "h0");
  in.dout = read(file, "do");
  in.dhT = read(file, "dht");
  in.positions.assign(in.batch * in.tokens, 1);
  for (const int64_t start : read<int64_t>(file, "doc_starts")) {
    for (int64_t b = 0; b < in.batch; ++b) in.positions[b * in.tokens + start] = 0;
  }
  return in;
}

class MixerGolden : public ::testing::TestWithParam<std::tuple<std::string, DType>> {};
INSTANTIATE_TEST_SUITE_P(Files, MixerGolden,
                         ::testing::Combine(::testing::ValuesIn(golden_cases("mixer-",
                                                                             /*folders=*/false)),
                                            ::testing::Values(DType::f64, DType::f32)),
                         [](const auto& param) {
                           std::string test =
                               std::filesystem::path(std::get<0>(param.param)).stem();
                           std::replace(test.begin(), test.end(), '-', '_');
                           return concat(test, "_", name(std::get<1>(param.param)));
                         });

void expect_near(const SafetensorsFile& file, const std::string& tensor,
                 const std::vector<double>& got, double tolerance) {
  EXPECT_EQ(file.contains(tensor), !got.empty()) << tensor;
  EXPECT_LE(relative_rms(got, read(file, tensor)), tolerance) << tensor;
}

void expect_agreement(const SafetensorsFile& file, const naive::StateMixerResult& r,
                      double tolerance, double tolerance_of_gates) {
  expect_near(file, "o", r.out, tolerance);
  expect_near(file, "hT", r.hT, tolerance);
  expect_near(file, "dq", r.dq, tolerance);
  expect_near(file, "dk", r.dk, tolerance);
  expect_near(file, "dv", r.dv, tolerance);
  expect_near(file, "dg", r.dlog_decay, tolerance_of_gates);
  expect_near(file, "dbeta", r.dbeta, tolerance_of_gates);
  expect_near(file, "dh0", r.dh0, tolerance);
}

/// Outputs are stored in f32, which alone is 3e-8; docs/numerics.md has the rest.
TEST_P(MixerGolden, AgreesInEveryOutputAndGradient) {
  const auto& [name, dtype] = GetParam();
  const SafetensorsFile file(golden_folder() + "/" + name);
  const bool oracle_type = dtype == DType::f64;
  expect_agreement(file, run_mixer(inputs(file), {.dtype = dtype}).result,
                   oracle_type ? 1e-6 : 1e-5, oracle_type ? 1e-6 : 1e-4);
}

TEST(MixerGoldenFiles, AreThere) {
  EXPECT_FALSE(golden_cases("mixer-", /*folders=*/false).empty())
      << "no mixer-*.safetensors in " << golden_folder();
}

/// The oracle that kernels are held against is held against the files too.
TEST(MixerGoldenFiles, AgreeWithTheNaiveRecurrence) {
  for (const std::string& name : golden_cases("mixer-", /*folders=*/false)) {
    SCOPED_TRACE(name);
    const SafetensorsFile file(golden_folder() + "/" + name);
    expect_agreement(file, naive::state_mixer(inputs(file)), 1e-6, 1e-6);
  }
}

}  // namespace
}  // namespace weft
