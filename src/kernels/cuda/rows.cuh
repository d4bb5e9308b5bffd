// Rows that a team of threads reads, reduces and writes; short rows share a warp. threadIdx.x is a
// thread's place in its team, threadIdx.y the team's in its block.
#pragma once

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"

namespace weft::cuda {

inline constexpr int kRowThreads = 256;
inline constexpr int kRowWarps = kRowThreads / kWarp;
inline constexpr int64_t kMostRowWidth = 1 << 30;  // columns are counted in 32 bits

/// A team is as small as lets a thread keep at most `held` packs of the row, so that each has many
/// loads in flight, and 8 threads at least, whose packs make 128 bytes. Only teams of a whole block
/// have rows with more than they keep.
inline dim3 team_block(int64_t packs, int held) {
  int threads = 8;
  while (threads < kRowThreads && threads * held < packs) threads *= 2;
  return dim3(threads, kRowThreads / threads);
}

/// Every thread gets the sum over its team. All threads of the block call it; `shared` has
/// kRowWarps places.
__device__ inline float team_sum(float value, float* shared) {
  if (blockDim.x >= kWarp) return row_reduce(value, shared, Sum{});
  for (int offset = blockDim.x / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  }
  return value;
}

}  // namespace weft::cuda
