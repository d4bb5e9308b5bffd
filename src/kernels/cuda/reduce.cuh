// Sums over a warp and a block. Their order depends on the block's shape alone, so that a result
// has the same bits on every run.
#pragma once

#include <cstdint>

namespace weft::cuda {

inline constexpr int kWarp = 32;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

/// Every lane gets the whole of `Lanes` neighbouring lanes.
template <int Lanes = kWarp, class T, class Op>
__device__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, offset));
  }
  return value;
}

/// Every thread of one row of the block (threadIdx.y) gets the sum over that row. All threads call
/// it; blockDim.x is a multiple of the warp, `shared` has a place for every warp of the block.
template <class T, class Op>
__device__ T row_reduce(T value, T* shared, Op op) {
  value = warp_reduce(value, op);
  const int warps = blockDim.x / kWarp;
  if (warps == 1) return value;
  T* row = shared + threadIdx.y * warps;
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % kWarp == 0) row[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = row[0];
  for (int w = 1; w < warps; ++w) total = op(total, row[w]);
  return total;
}

/// The threads of row 0 of the block (threadIdx.y) get the sum over their column. All threads call
/// it; blockDim.y is a power of 2, `shared` has a place for every thread of the block.
__device__ inline float column_reduce(float value, float* shared) {
  const unsigned at = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // the last call's readers are done
  shared[at] = value;
  for (unsigned half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) shared[at] = value += shared[at + half * blockDim.x];
  }
  return value;
}

}  // namespace weft::cuda
