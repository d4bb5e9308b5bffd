// What the attention kernels for Hopper share: a block is some consumer warpgroups, which compute
// 64 rows each, and behind them a producer, which only starts copies.
#pragma once

#include "src/kernels/cuda/attention_warp.cuh"
#include "src/kernels/cuda/engine_map.hpp"
#include "src/kernels/cuda/warpgroup.cuh"

namespace weft::cuda {

inline constexpr int kGroupRows = 64;  // of a warpgroup
inline constexpr int kGroupWarps = kWarpgroup / kWarp;

__device__ inline int warpgroup() {
  return static_cast<int>(threadIdx.x) / kWarpgroup;
}

/// Barriers of a ring of slots that the producer fills and every warp of the consumers frees.
template <int Slots>
struct SlotBarriers {
  PhaseBarrier full[Slots], free[Slots];

  __device__ void init(int consumer_warps) {
    for (int s = 0; s < Slots; ++s) {
      full[s].init(1);
      free[s].init(consumer_warps);
    }
  }
  /// By one lane of the producer: waits for the slot, and announces what will be copied to it.
  __device__ void claim(const RingPlace<Slots>& place, int bytes) {
    free[place.slot].wait(place.parity ^ 1);
    full[place.slot].arrive_and_expect(bytes);
  }
  /// By every warp of a consumer, all its lanes.
  __device__ void release(int slot) {
    __syncwarp();
    if (lane() == 0) free[slot].arrive();
  }
};

/// sum = (rows of a from `row` on) (rows of b)^T, begun.
template <int D, int R, int N>
__device__ void begin_scores(RowSums<N>& sum, const EngineTile<D, R>& a, int row,
                             const EngineTile<D, N>& b) {
  const Operand left = a.along(row), right = b.along(0);
  open_products();
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const uint64_t left_k = left.at(a.step_along(k)), right_k = right.at(b.step_along(k));
    if (k == 0) {
      set_async<false>(sum.at, left_k, right_k);
    } else {
      add_async<false>(sum.at, left_k, right_k);
    }
  }
  close_products();
}
/// sum += weights (rows of b), begun.
template <int D, int N>
__device__ void begin_product(RowSums<D>& sum, const LeftRows<N>& weights,
                              const EngineTile<D, N>& b) {
  const Operand right = b.across();
  open_products();
#pragma unroll
  for (int k = 0; k < N / 16; ++k) {
    add_async<true>(sum.at, weights.at[k], right.at(b.step_across(k)));
  }
  close_products();
}

/// The consumers alone meet.
template <int Consumers>
__device__ void meet_consumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(Consumers * kWarpgroup) : "memory");
}

/// Launches a kernel of `Consumers` warpgroups and a producer, of which there is one a
/// multiprocessor.
template <int Consumers, class Kernel, class... Args>
void launch_warpgroups(Kernel kernel, dim3 grid, size_t shared_bytes, Stream& stream,
                       const Args&... args) {
  WEFT_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<grid, (Consumers + 1) * kWarpgroup, shared_bytes, native(stream)>>>(args...);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
