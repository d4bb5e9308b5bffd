// Kernels that treat every element alone: one thread, one access of 16 bytes per tensor.
#pragma once

#include "src/kernels/cuda/elements.cuh"

namespace weft::cuda {

inline constexpr int kMapThreads = 256;

/// f(first element) for every group of W elements.
template <int W, class F>
__global__ void __launch_bounds__(kMapThreads) map(int64_t n, F f) {
  const int64_t i = thread_index() * W;
  if (i < n) f(i);
}

template <int W, class F>
void launch_map(int64_t n, const F& f, Stream& stream) {
  if (n == 0) return;
  map<W><<<grid_of(ceil_div(n, int64_t{kMapThreads} * W)), kMapThreads, 0, native(stream)>>>(n, f);
  WEFT_CALL(cudaGetLastError());
}

__device__ inline float sigmoid(float x) {
  // Both approximations are good to 2 ulp; past -88 the quotient is 0, as it should be.
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

/// The slope of x sigmoid(x), s being sigmoid(x).
__device__ inline float silu_slope(float x, float s) {
  return s * (1 + x * (1 - s));
}

}  // namespace weft::cuda
