// Cases made by other programs. Every folder llama-* below WEFT_GOLDEN_DIR (default: tests/golden)
// is trained from its weights on its tokens and compared with its losses, norms, gradients, logits.
#include "parallel/comm/threads.hpp"
#include "src/kernels/matmul.hpp"
#include "tests/golden_run.hpp"

namespace weft {
namespace {

void expect_llama(const std::string& name, DType dtype, const MeshShape& mesh,
                  const std::string& strategy, int64_t micro_batch_size, int zero = 1) {
  cpu::set_blas_threads(1);
  const std::string folder = golden_folder() + "/" + name;
  const Expected expected(folder);
  std::printf("%s, %s, %s, %s\n", name.c_str(), weft::name(dtype), mesh.text().c_str(),
              strategy.c_str());
  Config config = golden_config(folder, expected, dtype, mesh);
  config.sequence.attention = {strategy};
  config.train.micro_batch_size = micro_batch_size;
  config.optimizer.zero = zero;
  const auto start = [&](const auto& body) { run_ranks(mesh.ranks(), body); };
  expect_golden(GoldenRun(folder, expected, config).run(start), expected);
}

class Golden : public testing::TestWithParam<std::tuple<std::string, DType, int, std::string>> {};

TEST_P(Golden, Llama) {
  const auto& [name, dtype, ranks, strategy] = GetParam();
  expect_llama(name, dtype, mesh_along(Axis::sequence, ranks), strategy, 2);
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

// ---- The other axes

using Sizes = std::array<int, kAxes>;

class GoldenOnMeshes : public testing::TestWithParam<std::tuple<std::string, DType, Sizes, int>> {};

TEST_P(GoldenOnMeshes, Llama) {
  const auto& [name, dtype, sizes, zero] = GetParam();
  expect_llama(name, dtype, {.size = sizes}, "lightseq", 1, zero);
}

std::string mesh_label(const testing::TestParamInfo<GoldenOnMeshes::ParamType>& test) {
  const auto& [folder, dtype, sizes, zero] = test.param;
  std::string label = concat(folder, "_", name(dtype), "_zero", zero);
  for (const Axis axis : kAllAxes) {
    label += concat("_", name(axis), sizes[static_cast<int>(axis)]);
  }
  std::replace(label.begin(), label.end(), '-', '_');
  return label;
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenOnMeshes,
                         testing::Combine(testing::ValuesIn(golden_cases("llama-",
                                                                         /*folders=*/true)),
                                          testing::Values(DType::f32, DType::f64),
                                          testing::Values(Sizes{2, 1, 1, 2}, Sizes{1, 1, 2, 2},
                                                          Sizes{1, 2, 2, 1}, Sizes{2, 2, 2, 2}),
                                          testing::Values(1, 3)),
                         mesh_label);

}  // namespace
}  // namespace weft
