// A row is read once into registers, reduced, and written. Rows too wide for that read their rest
// again, mostly from the cache.
#include "src/kernels/cuda/column_sums.cuh"
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kForwardHeld = 8;   // packs of a row that a thread keeps
constexpr int kBackwardHeld = 2;  // of two rows, and their sums: more would spill
constexpr int kWarps = kThreads / kWarp;

/// Threads of a row and rows of a block: few threads, so that each has many loads in flight.
dim3 row_block(int64_t packs, int held) {
  int threads = kWarp;
  while (threads < kThreads && threads * held < packs) threads *= 2;
  return dim3(threads, kThreads / threads);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads, 3)
    forward(T* y, float* rstd, const T* x, const T* weight, int64_t rows, int width,
            int64_t y_stride, int64_t x_stride, float eps) {
  constexpr int kHeld = kForwardHeld;
  __shared__ float shared[kWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool inside = r < rows;  // all threads reach the barriers
  const T* row = x + (inside ? r : 0) * x_stride;
  const int step = static_cast<int>(blockDim.x) * W;
  const int first = static_cast<int>(threadIdx.x) * W;
  Pack<T, W> held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < width) held[i] = load_pack<W>(row + first + i * step);
  }
  float sum = 0;
  const auto add_squares = [&](const Pack<T, W>& pack) {
#pragma unroll
    for (const T value : pack.value) sum += to_float(value) * to_float(value);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < width) add_squares(held[i]);
  }
  for (int c = first + kHeld * step; c < width; c += step) add_squares(load_pack<W>(row + c));
  const float scale = 1.0f / sqrtf(row_reduce(sum, shared, Sum{}) / width + eps);
  if (!inside) return;
  if (threadIdx.x == 0) rstd[r] = scale;
  const auto write = [&](int c, const Pack<T, W>& pack) {
    float values[W];
    load<W>(weight + c, values);
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] *= to_float(pack.value[j]) * scale;
    store<W>(y + r * y_stride + c, values);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step < width) write(first + i * step, held[i]);
  }
  for (int c = first + kHeld * step; c < width; c += step) write(c, load_pack<W>(row + c));
}

struct Strides {
  int64_t dx, dy, x;
};

/// dx of every teams-th row, a team being the threads of one row of a block; and what the team
/// adds to dweight, into its row of `partial` [teams, width]. The first kHeld packs of a thread's
/// columns keep their sum in registers, later ones in `partial` itself.
template <class T, int W>
__global__ void __launch_bounds__(kThreads, 3)
    backward(T* dx, float* partial, const T* dy, const T* x, const float* rstd, const T* weight,
             int64_t rows, int width, int64_t teams, Strides stride) {
  constexpr int kHeld = kBackwardHeld;
  __shared__ float shared[kWarps];
  const int64_t team = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int step = static_cast<int>(blockDim.x) * W;
  const int first = static_cast<int>(threadIdx.x) * W;
  float* mine = partial + (team < teams ? team : 0) * int64_t{width};
  float sums[kHeld][W] = {};
  for (int c = first + kHeld * step; team < teams && c < width; c += step) {
    for (int j = 0; j < W; ++j) mine[c + j] = 0;
  }
  for (int64_t base = 0; base < rows; base += teams) {  // all threads reach the barriers
    const bool inside = team < teams && base + team < rows;
    const int64_t r = inside ? base + team : 0;
    const int end = inside ? width : 0;
    const T* dy_row = dy + r * stride.dy;
    const T* x_row = x + r * stride.x;
    T* dx_row = dx + r * stride.dx;
    Pack<T, W> g[kHeld], v[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step >= end) continue;
      g[i] = load_pack<W>(dy_row + first + i * step);
      v[i] = load_pack<W>(x_row + first + i * step);
    }
    float along = 0;
    const auto add_along = [&](int c, const Pack<T, W>& dys, const Pack<T, W>& xs) {
      float w[W];
      load<W>(weight + c, w);
#pragma unroll
      for (int j = 0; j < W; ++j) along += to_float(dys.value[j]) * w[j] * to_float(xs.value[j]);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step < end) add_along(first + i * step, g[i], v[i]);
    }
    for (int c = first + kHeld * step; c < end; c += step) {
      add_along(c, load_pack<W>(dy_row + c), load_pack<W>(x_row + c));
    }
    // dx = rstd (w dy - x rstd^2 mean(w dy x)): the norm removes what points along x.
    const float scale = rstd[r];
    const float shrink = row_reduce(along, shared, Sum{}) * scale * scale / width;
    const auto finish = [&](int c, const Pack<T, W>& dys, const Pack<T, W>& xs, float* sum) {
      float w[W], out[W];
      load<W>(weight + c, w);
      load<W>(dx_row + c, out);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float d = to_float(dys.value[j]), value = to_float(xs.value[j]);
        out[j] += scale * (d * w[j] - value * shrink);
        sum[j] += d * value * scale;
      }
      store<W>(dx_row + c, out);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step < end) finish(first + i * step, g[i], v[i], sums[i]);
    }
    for (int c = first + kHeld * step; c < end; c += step) {
      finish(c, load_pack<W>(dy_row + c), load_pack<W>(x_row + c), mine + c);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (team >= teams || first + i * step >= width) continue;
#pragma unroll
    for (int j = 0; j < W; ++j) mine[first + i * step + j] = sums[i][j];
  }
}

constexpr int64_t kMostWidth = 1 << 30;  // columns are counted in 32 bits

/// Teams of the backward: enough to fill a card, partial sums of at most 16 MiB. A function of the
/// shape alone, for the same bits on every card.
int64_t team_count(int64_t rows, int64_t width) {
  constexpr int64_t kMost = 792, kFloats = int64_t{4} << 20;
  return std::max<int64_t>(1, std::min({rows, kMost, kFloats / width}));
}

}  // namespace

void rmsnorm_forward(const RmsNormArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  WEFT_CHECK(width <= kMostWidth, "rows of ", width);
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.y, &args.x, &args.weight}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const dim3 block = row_block(ceil_div(width, W), kForwardHeld);
      forward<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.y), elements<float>(args.rstd), elements<T>(args.x),
          elements<T>(args.weight), rows, static_cast<int>(width), args.y.stride[0],
          args.x.stride[0], static_cast<float>(args.eps));
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void rmsnorm_backward(const RmsNormGradArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0 || width == 0) return;
  WEFT_CHECK(width <= kMostWidth, "rows of ", width);
  const int64_t teams = team_count(rows, width);
  float* partial = reinterpret_cast<float*>(
      cuda_stream(stream).workspace(teams * width * static_cast<int64_t>(sizeof(float))));
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.dx, &args.dy, &args.x, &args.weight}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const dim3 block = row_block(ceil_div(width, W), kBackwardHeld);
      backward<T, W><<<grid_of(ceil_div(teams, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.dx), partial, elements<T>(args.dy), elements<T>(args.x),
          elements<float>(args.rstd), elements<T>(args.weight), rows, static_cast<int>(width),
          teams, {args.dx.stride[0], args.dy.stride[0], args.x.stride[0]});
    });
  });
  WEFT_CALL(cudaGetLastError());
  add_column_sums(args.dweight, {partial, teams, width, width}, stream);
}

}  // namespace weft::cuda
