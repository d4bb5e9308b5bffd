#include "src/kernels/cuda/attention_scratch.hpp"

#include "src/kernels/slab.hpp"

namespace weft::cuda {
namespace {

/// What cuDNN's backward pass may ask for: dq and the row sums of dout * out in f32, and, where
/// query heads share a kv head, dk and dv of every query head. How it rounds lengths up is not
/// documented, hence whole tiles and a few MiB more. A plan that asks for more is not taken.
int64_t workspace_of(const AttentionSizes& s) {
  constexpr int64_t kTile = 128, kMore = int64_t{4} << 20;
  const auto tiles = [](int64_t tokens) { return (tokens + kTile - 1) / kTile * kTile; };
  const int64_t heads = s.batch * s.heads, f32 = sizeof(float);
  int64_t bytes = heads * tiles(s.queries) * (s.head_dim + 1) * f32;
  if (s.kv_heads < s.heads) bytes += 2 * heads * tiles(s.keys) * s.head_dim * f32;
  return bytes + kMore;
}

}  // namespace

AttentionScratch::AttentionScratch(std::byte* memory, const AttentionSizes& s)
    : workspace_bytes(workspace_of(s)) {
  const int64_t element = size_of(DType::bf16);
  const int64_t queries = s.batch * s.queries * s.heads, keys = s.batch * s.keys * s.kv_heads;
  Slab slab(memory);
  workspace = slab.take<std::byte>(workspace_bytes);
  out = slab.take<std::byte>(queries * s.head_dim * element);
  lse = slab.take<float>(queries);
  dq = slab.take<std::byte>(queries * s.head_dim * element);
  dk = slab.take<std::byte>(keys * s.head_dim * element);
  dv = slab.take<std::byte>(keys * s.head_dim * element);
  lengths = slab.take<int32_t>(2 * s.batch);
  bytes = slab.used();
}

}  // namespace weft::cuda
