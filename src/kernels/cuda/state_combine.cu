// One element a thread, f32: its sum over K in the order of the CPU twin.
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/state_combine.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;

/// [R, K, V] numbers; none: all 0.
struct States {
  float* data;
  int64_t state, row;  // strides

  static States of(const Tensor& t) {
    if (!t) return {nullptr, 0, 0};
    return {elements<float>(t), t.stride[0], t.stride[1]};
  }
  __device__ float* at(int64_t r, int64_t k, int64_t v) const {
    return data + r * state + k * row + v;
  }
};

/// `dims`: of the transition.
__global__ void __launch_bounds__(kThreads)
    combine(States out, const float* transition, int dims, bool transposed, States entering,
            States local, int64_t R, int64_t K, int64_t V) {
  const int64_t i = thread_index();
  if (i >= R * K * V) return;
  const int64_t v = i % V, k = i / V % K, r = i / V / K;
  float sum = local.data != nullptr ? *local.at(r, k, v) : 0.0f;
  const auto add = [&](float a, int64_t j) {
    if (a != 0) sum = fmaf(a, *entering.at(r, j, v), sum);
  };
  if (dims == 3) {
    const float* a = transition + r * K * K;
    for (int64_t j = 0; j < K; ++j) add(transposed ? a[j * K + k] : a[k * K + j], j);
  } else {
    add(dims == 0 ? 1.0f : expf(transition[dims == 1 ? r : r * K + k]), k);
  }
  *out.at(r, k, v) = sum;
}

}  // namespace

void state_combine(const StateCombineArgs& args, Stream& stream) {
  const int64_t R = args.out.dim(0), K = args.out.dim(1), V = args.out.dim(2);
  if (args.out.numel() == 0) return;
  combine<<<grid_of(ceil_div(R * K * V, kThreads)), kThreads, 0, native(stream)>>>(
      States::of(args.out), args.transition ? elements<float>(args.transition) : nullptr,
      args.transition.ndim, args.transposed, States::of(args.entering), States::of(args.local), R,
      K, V);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
