// What calls of the state mixers cost: scratch, states that passes hand on, products.
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "src/kernels/cuda/state_scratch.hpp"
#include "tests/state_mixer_testing.hpp"

namespace weft {
namespace {

TEST(StateMixerScratch, OfAGpuGrowsWithHeadsAndLittleWithTokensBeyondAPiece) {
  for (const StateKind kind : kStateKinds) {
    const auto bytes = [&](Device device, int64_t tokens, int64_t heads) {
      return state_scratch_bytes(device, kind, DType::bf16, {1, tokens, heads, 128, 128});
    };
    EXPECT_EQ(bytes(Device::cpu, 1 << 20, 16), state_scratch_bytes(kind, DType::bf16, 128, 128));
    const int64_t chunk = bytes(Device::cuda, 64, 16);
    EXPECT_GT(bytes(Device::cuda, 64, 32), chunk);
    EXPECT_GT(bytes(Device::cuda, 128, 16), chunk);
    constexpr int64_t kLogs = int64_t{8} << 20;  // bytes for 2^16 chunks of 16 heads
    const bool places = cuda::state::whole_in_segments(kind, DType::bf16, 128, 128);
    // The place of every token, where decays are trained also what their gradients are made of.
    const int64_t of_tokens = !places                     ? 0
                              : kind == StateKind::scalar ? 2 * 64 * kLogs + kLogs / 2
                                                          : 64 * kLogs;
    const int64_t lanes = kind == StateKind::vector ? 128 : 1;
    EXPECT_EQ(bytes(Device::cuda, 1 << 23, 16) - bytes(Device::cuda, 1 << 22, 16),
              kLogs * lanes + of_tokens);
    EXPECT_LT(bytes(Device::cuda, 1 << 16, 16), int64_t{200} << 20);
  }
}

/// 2^16 tokens are 1024 chunks, with 8 heads in all 64 segments of 8 x 1024 / 512 chunks.
TEST(StateMixerMemory, IsHandedOnBySegmentsAndOnlyWhereItIsRead) {
  const StateShape shape{2, 1 << 16, 4, 64, 128}, of_16_chunks{2, 16 * kStateChunk, 4, 64, 128};
  const auto text = [](const std::optional<HandedStates>& states) {
    return states ? concat(states->count, " ", name(states->dtype)) : "none";
  };
  const auto added = [&](Device device, StateKind kind, DType dtype, const StateShape& of) {
    return text(chunk_states_of(device, kind, dtype, of));
  };
  const auto entering = [&](Device device, StateKind kind, DType dtype) {
    return text(entering_states_of(device, kind, dtype, shape));
  };
  for (const StateKind kind : kStateKinds) {
    SCOPED_TRACE(name(kind));
    const bool delta = kind == StateKind::delta, vector = kind == StateKind::vector;
    const bool untrained = kind == StateKind::none || kind == StateKind::fixed;
    EXPECT_EQ(added(Device::cpu, kind, DType::f64, shape), delta ? "none" : "1024 f64");
    EXPECT_EQ(added(Device::cuda, kind, DType::f32, shape), vector ? "1024 f32" : "none");
    EXPECT_EQ(added(Device::cuda, kind, DType::bf16, shape), delta ? "none" : "64 f32");
    EXPECT_EQ(added(Device::cuda, kind, DType::bf16, of_16_chunks), "none");
    EXPECT_EQ(entering(Device::cpu, kind, DType::f64), "1024 f64");
    EXPECT_EQ(entering(Device::cuda, kind, DType::f32), "1024 f32");
    EXPECT_EQ(entering(Device::cuda, kind, DType::bf16), untrained         ? "none"
                                                         : delta || vector ? "1024 f32"
                                                                           : "1024 bf16");
  }
}

TEST(StateMixerCost, CountsTheProductsOfWholeChunks) {
  constexpr int64_t B = 2, T = 128, H = 3, K = 8, V = 4, c = kStateChunk;
  const auto meta = [](const std::vector<int64_t>& shape) {
    return Tensor::view(nullptr, DType::f32, Device::meta, shape);
  };
  const Tensor k = meta({B, T, H, K}), v = meta({B, T, H, V});
  const StateTokens scalar{StateKind::scalar, k, v, meta({B, T, H}), {}, meta({B, T})};
  StateTokens delta = scalar;
  delta.kind = StateKind::delta;
  StateSummaryArgs summary{};
  StateLocalArgs local{};
  StateApplyArgs apply{};
  local.out = apply.out = v;
  local.q = apply.q = k;
  const double tokens = 2.0 * B * H * T;  // a multiply-add is two
  summary.tokens = local.tokens = apply.tokens = scalar;
  EXPECT_EQ(cost(summary).flops, tokens * K * V);
  EXPECT_EQ(cost(local).flops, tokens * c * (K + V));
  EXPECT_EQ(cost(apply).flops, tokens * K * V);
  local.tokens = apply.tokens = delta;
  EXPECT_EQ(cost(local).flops, 0);
  EXPECT_EQ(cost(apply).flops, tokens * (2 * c * K + 3 * K * V + c * V + V * c / 2));
}

}  // namespace
}  // namespace weft
