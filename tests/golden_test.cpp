// Cases made by other programs. Every folder llama-* below WEFT_GOLDEN_DIR (default: tests/golden)
// is trained from its weights on its tokens and compared with its losses, norms, gradients, logits.
#include "parallel/comm/threads.hpp"
#include "src/kernels/matmul.hpp"
#include "tests/golden_run.hpp"

namespace weft {
namespace {

class Golden : public testing::TestWithParam<std::tuple<std::string, DType, int, std::string>> {};

TEST_P(Golden, Llama) {
  const auto& [name, dtype, ranks, strategy] = GetParam();
  cpu::set_blas_threads(1);
  const std::string folder = golden_folder() + "/" + name;
  const Expected expected(folder);
  MeshShape mesh;
  mesh.along(Axis::sequence) = ranks;
  std::printf("%s, %s, %s, %s\n", name.c_str(), weft::name(dtype), mesh.text().c_str(),
              strategy.c_str());
  Config config = golden_config(folder, expected, dtype, mesh);
  config.sequence.attention = {strategy};
  const auto start = [&](const auto& body) { run_ranks(mesh.ranks(), body); };
  expect_golden(GoldenRun(folder, expected, config).run(start), expected);
}

std::string golden_label(const testing::TestParamInfo<Golden::ParamType>& test) {
  const auto& [folder, dtype, ranks, strategy] = test.param;
  std::string label = concat(folder, "_", name(dtype), "_", ranks, "_ranks_", strategy);
  std::replace(label.begin(), label.end(), '-', '_');
  return label;
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Golden,
    testing::Combine(testing::ValuesIn(golden_cases("llama-", /*folders=*/true)),
                     testing::Values(DType::f32, DType::f64), testing::Values(1, 2, 3, 4),
                     testing::ValuesIn(attention_strategy_names())),
    golden_label);

}  // namespace
}  // namespace weft
