// Silu and feature maps an element at a time; rows of length 1 by teams of threads.
#include "src/kernels/feature_map.hpp"

#include "src/kernels/cuda/map.cuh"
#include "src/kernels/cuda/rows.cuh"

namespace weft::cuda {
namespace {

template <class T, int W>
struct SiluForward {
  T* y;
  const T* x;

  __device__ void operator()(int64_t i) const {
    float values[W];
    load<W>(x + i, values);
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] *= sigmoid(values[j]);
    store<W>(y + i, values);
  }
};

template <class T, int W>
struct SiluBackward {
  float* dx;
  const float* dy;
  const T* x;

  __device__ void operator()(int64_t i) const {
    float values[W], d[W];
    load<W>(x + i, values);
    load<W>(dy + i, d);
#pragma unroll
    for (int j = 0; j < W; ++j) d[j] *= silu_slope(values[j], sigmoid(values[j]));
    store<W>(dx + i, d);
  }
};

template <class T, int W>
struct MapForward {
  T* x;
  bool elu;  // or relu

  __device__ void operator()(int64_t i) const {
    float values[W];
    load<W>(x + i, values);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float below = elu ? expf(fminf(values[j], 0.0f)) : 0.0f;
      const float above = elu ? values[j] + 1 : values[j];
      values[j] = values[j] > 0 ? above : below;
    }
    store<W>(x + i, values);
  }
};

template <class T, int W>
struct MapBackward {
  float* dy;
  const T* y;
  bool elu;  // or relu

  __device__ void operator()(int64_t i) const {
    float features[W], d[W];
    load<W>(y + i, features);
    load<W>(dy + i, d);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (elu) {
        d[j] *= features[j] < 1 ? features[j] : 1.0f;
      } else {
        d[j] = features[j] > 0 ? d[j] : 0.0f;
      }
    }
    store<W>(dy + i, d);
  }
};

constexpr int kForwardHeld = 8;   // packs of a row that a thread keeps
constexpr int kBackwardHeld = 4;  // of two rows

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    unit_forward(T* x, float* rnorm, int64_t rows, int width, float eps) {
  constexpr int kHeld = kForwardHeld;
  __shared__ float shared[kRowWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  T* row = x + (r < rows ? r : 0) * width;
  const int end = r < rows ? width : 0;  // all threads reach the barriers
  const int step = static_cast<int>(blockDim.x) * W, first = static_cast<int>(threadIdx.x) * W;
  Pack<T, W> held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) held[i] = load_pack<W>(row + first + i * step);
  }
  float sum = 0;
  const auto add_squares = [&](const Pack<T, W>& pack) {
#pragma unroll
    for (const T value : pack.value) sum += to_float(value) * to_float(value);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) add_squares(held[i]);
  }
  for (int c = first + kHeld * step; c < end; c += step) add_squares(load_pack<W>(row + c));
  const float scale = 1.0f / sqrtf(team_sum(sum, shared) + eps);
  if (threadIdx.x == 0 && r < rows) rnorm[r] = scale;
  const auto write = [&](int c, const Pack<T, W>& pack) {
    float values[W];
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] = to_float(pack.value[j]) * scale;
    store<W>(row + c, values);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) write(first + i * step, held[i]);
  }
  for (int c = first + kHeld * step; c < end; c += step) write(c, load_pack<W>(row + c));
}

template <class T, int W>
__global__ void __launch_bounds__(kRowThreads)
    unit_backward(float* dy, const T* y, const float* rnorm, int64_t rows, int width) {
  constexpr int kHeld = kBackwardHeld;
  __shared__ float shared[kRowWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t row = r < rows ? r : 0;
  float* d = dy + row * width;
  const T* unit = y + row * width;
  const int end = r < rows ? width : 0;  // all threads reach the barriers
  const int step = static_cast<int>(blockDim.x) * W, first = static_cast<int>(threadIdx.x) * W;
  Pack<float, W> ds[kHeld];
  Pack<T, W> ys[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step >= end) continue;
    ds[i] = load_pack<W>(d + first + i * step);
    ys[i] = load_pack<W>(unit + first + i * step);
  }
  float sum = 0;
  const auto add_along = [&](const Pack<float, W>& a, const Pack<T, W>& b) {
#pragma unroll
    for (int j = 0; j < W; ++j) sum += a.value[j] * to_float(b.value[j]);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) add_along(ds[i], ys[i]);
  }
  for (int c = first + kHeld * step; c < end; c += step) {
    add_along(load_pack<W>(d + c), load_pack<W>(unit + c));
  }
  const float along = team_sum(sum, shared), scale = rnorm[row];
  const auto write = [&](int c, const Pack<float, W>& a, const Pack<T, W>& b) {
    float out[W];
#pragma unroll
    for (int j = 0; j < W; ++j) out[j] = scale * (a.value[j] - to_float(b.value[j]) * along);
    store<W>(d + c, out);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < end) write(first + i * step, ds[i], ys[i]);
  }
  for (int c = first + kHeld * step; c < end; c += step) {
    write(c, load_pack<W>(d + c), load_pack<W>(unit + c));
  }
}

}  // namespace

void silu_forward(const SiluArgs& args, Stream& stream) {
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(flat_in_packs({&args.y, &args.x}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(args.y.numel(), SiluForward<T, W>{elements<T>(args.y), elements<T>(args.x)},
                    stream);
    });
  });
}

void silu_backward(const SiluGradArgs& args, Stream& stream) {
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<float>(flat_in_packs({&args.dx, &args.dy, &args.x}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(args.x.numel(),
                    SiluBackward<T, W>{elements<float>(args.dx), elements<float>(args.dy),
                                       elements<T>(args.x)},
                    stream);
    });
  });
}

void feature_map_forward(const FeatureMapArgs& args, Stream& stream) {
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(flat_in_packs({&args.x}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(args.x.numel(),
                    MapForward<T, W>{elements<T>(args.x), args.map == FeatureMap::elu}, stream);
    });
  });
}

void feature_map_backward(const FeatureMapGradArgs& args, Stream& stream) {
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<float>(flat_in_packs({&args.dy, &args.y}), [&](auto width) {
      constexpr int W = decltype(width)::value;
      launch_map<W>(args.y.numel(),
                    MapBackward<T, W>{elements<float>(args.dy), elements<T>(args.y),
                                      args.map == FeatureMap::elu},
                    stream);
    });
  });
}

void unit_norm_forward(const UnitNormArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.x}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const dim3 block = team_block(ceil_div(width, W), kForwardHeld);
      unit_forward<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.x), elements<float>(args.rnorm), rows, static_cast<int>(width),
          static_cast<float>(args.eps));
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void unit_norm_backward(const UnitNormGradArgs& args, Stream& stream) {
  const int64_t rows = args.y.dim(0), width = args.y.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostRowWidth, "rows of ", width);
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<float>(rows_in_packs(width, {&args.dy, &args.y}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const dim3 block = team_block(ceil_div(width, W), kBackwardHeld);
      unit_backward<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<float>(args.dy), elements<T>(args.y), elements<float>(args.rnorm), rows,
          static_cast<int>(width));
    });
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
