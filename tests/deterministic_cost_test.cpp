// What train.deterministic changes, and what its price is made of; the times themselves are a
// GPU's.
#include "launch/deterministic_cost.hpp"

#include <gtest/gtest.h>

#include "launch/kernels_bench.hpp"
#include "tests/config_testing.hpp"

namespace weft {
namespace {

Config on_gpu(const std::vector<std::string>& sets = {}) {
  return parse(
      "data: {path: synthetic, seq_length: 65536}\ntrain: {device: cuda, precision: bf16}\n"
      "mesh: {data: 1}\n",
      sets);
}

TEST(DeterministicCost, IsThatOfSoftmaxAttentionInBf16OnAGpu) {
  EXPECT_TRUE(has_other_backward(on_gpu()));
  EXPECT_TRUE(has_other_backward(on_gpu({"model.layer_pattern=GGG*"})));
  EXPECT_TRUE(has_other_backward(on_gpu({"model.layer_pattern=W", "model.window=512"})));
  EXPECT_FALSE(has_other_backward(on_gpu({"model.layer_pattern=G"})));
  EXPECT_FALSE(has_other_backward(on_gpu({"train.precision=f32"})));
  EXPECT_FALSE(has_other_backward(on_gpu({"train.device=cpu"})));
}

TEST(DeterministicCost, IsMeasuredOnABlockOfTheRun) {
  Config config = on_gpu({"mesh.sequence=4"});
  KernelSizes sizes = sizes_of_backward(config);
  EXPECT_EQ(sizes.batch, 1);
  EXPECT_EQ(sizes.attention_tokens, 8192);  // of 16384: enough to fill a card
  EXPECT_EQ(sizes.heads, config.model.num_attention_heads);
  EXPECT_EQ(sizes.kv_heads, config.model.num_key_value_heads);
  EXPECT_EQ(sizes.head_dim, config.model.head_dim);
  config.data.seq_length = 1000;  // shards of 250
  config.train.global_batch_size = config.train.micro_batch_size = 3;
  sizes = sizes_of_backward(config);
  EXPECT_EQ(sizes.batch, 3);
  EXPECT_EQ(sizes.attention_tokens, 250);
}

TEST(DeterministicCost, GrowsWithTheFlopsOfTheStep) {
  const BackwardTimes times{
      .shape = "1 x 8 x 2 x 64", .flops = 1e12, .own_s = 6e-3, .cudnn_s = 2e-3};
  EXPECT_DOUBLE_EQ(times.extra_s(1e12), 4e-3);
  EXPECT_DOUBLE_EQ(times.extra_s(32e12), 128e-3);
  const BackwardTimes faster{.shape = "", .flops = 1e12, .own_s = 1e-3, .cudnn_s = 2e-3};
  EXPECT_EQ(faster.extra_s(1e12), 0);
  EXPECT_EQ(
      text(times, 32e12, 1.28),
      "weft: deterministic: own kernels take 6.00 ms for attention's backward pass (1 x 8 x 2 "
      "x 64, causal) where cuDNN takes 2.00: up to 128.0 ms a step more, 10 % of what its "
      "FLOPs take at the rate of products");
}

}  // namespace
}  // namespace weft
