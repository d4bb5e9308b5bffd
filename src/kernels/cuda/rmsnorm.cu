// A row is read once into registers, reduced, and written. Rows too wide for that read their rest
// again, mostly from the cache.
#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 4;  // packs of a row that a thread keeps
constexpr int kWarps = kThreads / kWarp;

/// Threads of a row and rows of a block.
dim3 row_block(int64_t packs) {
  int threads = kWarp;
  while (threads < kThreads && threads * 2 <= packs) threads *= 2;
  return dim3(threads, kThreads / threads);
}

template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    forward(T* y, float* rstd, const T* x, const T* weight, int64_t rows, int64_t width,
            int64_t y_stride, int64_t x_stride, float eps) {
  __shared__ float shared[kWarps];
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool inside = r < rows;  // all threads reach the barriers
  const T* row = x + (inside ? r : 0) * x_stride;
  const int64_t step = static_cast<int64_t>(blockDim.x) * W;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * W;
  float held[kHeld][W], sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step >= width) break;
    load<W>(row + first + i * step, held[i]);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += held[i][j] * held[i][j];
  }
  for (int64_t c = first + kHeld * step; c < width; c += step) {
    float rest[W];
    load<W>(row + c, rest);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += rest[j] * rest[j];
  }
  const float scale = 1.0f / sqrtf(row_reduce(sum, shared, Sum{}) / width + eps);
  if (!inside) return;
  if (threadIdx.x == 0) rstd[r] = scale;
  const auto write = [&](int64_t c, float(&values)[W]) {
    float w[W];
    load<W>(weight + c, w);
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] *= scale * w[j];
    store<W>(y + r * y_stride + c, values);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step >= width) break;
    write(first + i * step, held[i]);
  }
  for (int64_t c = first + kHeld * step; c < width; c += step) {
    float rest[W];
    load<W>(row + c, rest);
    write(c, rest);
  }
}

struct Strides {
  int64_t dx, dy, x;
};

/// dx of rows blockIdx.x, blockIdx.x + gridDim.x, ...; and what they add to dweight, into row
/// blockIdx.x of `partial` [gridDim.x, width]. A block has one row of threads; the first kHeld
/// packs of a thread's columns keep their sum in registers, later ones in `partial` itself.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    backward(T* dx, float* partial, const T* dy, const T* x, const float* rstd, const T* weight,
             int64_t rows, int64_t width, Strides stride) {
  __shared__ float shared[kWarps];
  const int64_t step = static_cast<int64_t>(blockDim.x) * W;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * W;
  float* mine = partial + blockIdx.x * width;
  float sums[kHeld][W] = {};
  for (int64_t c = first + kHeld * step; c < width; c += step) {
    for (int j = 0; j < W; ++j) mine[c + j] = 0;
  }
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    const T* dy_row = dy + r * stride.dy;
    const T* x_row = x + r * stride.x;
    T* dx_row = dx + r * stride.dx;
    const float scale = rstd[r];
    float g[kHeld][W], v[kHeld][W], along = 0;  // dy and x of this row
    const auto add_along = [&](int64_t c, const float(&dys)[W], const float(&xs)[W]) {
      float w[W];
      load<W>(weight + c, w);
#pragma unroll
      for (int j = 0; j < W; ++j) along += dys[j] * w[j] * xs[j];
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step >= width) break;
      load<W>(dy_row + first + i * step, g[i]);
      load<W>(x_row + first + i * step, v[i]);
      add_along(first + i * step, g[i], v[i]);
    }
    for (int64_t c = first + kHeld * step; c < width; c += step) {
      float dys[W], xs[W];
      load<W>(dy_row + c, dys);
      load<W>(x_row + c, xs);
      add_along(c, dys, xs);
    }
    // dx = rstd (w dy - x rstd^2 mean(w dy x)): the norm removes what points along x.
    const float shrink = row_reduce(along, shared, Sum{}) * scale * scale / width;
    const auto finish = [&](int64_t c, const float(&dys)[W], const float(&xs)[W], float* sum) {
      float w[W], out[W];
      load<W>(weight + c, w);
      load<W>(dx_row + c, out);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        out[j] += scale * (dys[j] * w[j] - xs[j] * shrink);
        sum[j] += dys[j] * xs[j] * scale;
      }
      store<W>(dx_row + c, out);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (first + i * step >= width) break;
      finish(first + i * step, g[i], v[i], sums[i]);
    }
    for (int64_t c = first + kHeld * step; c < width; c += step) {
      float dys[W], xs[W];
      load<W>(dy_row + c, dys);
      load<W>(x_row + c, xs);
      finish(c, dys, xs, mine + c);
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (first + i * step >= width) break;
    for (int j = 0; j < W; ++j) mine[first + i * step + j] = sums[i][j];
  }
}

/// dweight += the sum of the rows of `partial`: 32 columns a block, 32 interleaved sums a column.
template <class T>
__global__ void __launch_bounds__(1024)
    add_rows(T* dweight, const float* partial, int64_t rows, int64_t width) {
  __shared__ float sums[kWarp][kWarp + 1];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  float sum = 0;
  if (c < width) {
    for (int64_t r = threadIdx.y; r < rows; r += kWarp) sum += partial[r * width + c];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const float total = warp_reduce(sums[threadIdx.x][threadIdx.y], Sum{});
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.y;
  if (threadIdx.x == 0 && column < width) {
    dweight[column] = from_float<T>(to_float(dweight[column]) + total);
  }
}

/// Blocks of the backward: enough to fill a card, partial sums of at most 16 MiB. A function of the
/// shape alone, for the same bits on every card.
int64_t partial_rows(int64_t rows, int64_t width) {
  constexpr int64_t kMost = 1056, kFloats = int64_t{4} << 20;
  return std::max<int64_t>(1, std::min({rows, kMost, kFloats / width}));
}

}  // namespace

void rmsnorm_forward(const RmsNormArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.y, &args.x, &args.weight}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const dim3 block = row_block(ceil_div(width, W));
      forward<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.y), elements<float>(args.rstd), elements<T>(args.x),
          elements<T>(args.weight), rows, width, args.y.stride[0], args.x.stride[0],
          static_cast<float>(args.eps));
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void rmsnorm_backward(const RmsNormGradArgs& args, Stream& stream) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0 || width == 0) return;
  const int64_t blocks = partial_rows(rows, width);
  float* partial = reinterpret_cast<float*>(
      cuda_stream(stream).workspace(blocks * width * static_cast<int64_t>(sizeof(float))));
  visit_element(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.dx, &args.dy, &args.x, &args.weight}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      backward<T, W><<<grid_of(blocks), row_block(ceil_div(width, W)).x, 0, native(stream)>>>(
          elements<T>(args.dx), partial, elements<T>(args.dy), elements<T>(args.x),
          elements<float>(args.rstd), elements<T>(args.weight), rows, width,
          {args.dx.stride[0], args.dy.stride[0], args.x.stride[0]});
    });
  });
  WEFT_CALL(cudaGetLastError());
  visit_element(args.dweight.dtype, [&](auto zero) {
    using T = decltype(zero);
    add_rows<T><<<grid_of(ceil_div(width, kWarp)), dim3(kWarp, kWarp), 0, native(stream)>>>(
        elements<T>(args.dweight), partial, blocks, width);
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
