// Kernels over the rows of [R, C] numbers that sum over them, column by column. Every sum's order
// depends on the shape alone, for the same bits on every run and every card.
#pragma once

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"

namespace weft::cuda {

/// Sums that the blocks of a kernel left, and where they go:
///   gradient[first + c column_step + s sum_step] += sum over parts of partial[part][s][c]
struct ColumnSums {
  const float* partial;      // of the first sum
  int64_t parts, part_step;  // part_step: numbers from part to part
  int64_t width;             // columns, also the numbers from sum to sum
  int sums = 1;
  int64_t first = 0, column_step = 1, sum_step = 0;
};

/// 32 columns a block, 32 interleaved sums a column; blockIdx.y is the sum.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarp) add_parts(T* gradient, ColumnSums from) {
  __shared__ float sums[kWarp][kWarp + 1];
  const int64_t s = blockIdx.y, c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  float sum = 0;
  if (c < from.width) {
    const float* column = from.partial + s * from.width + c;
    for (int64_t r = threadIdx.y; r < from.parts; r += kWarp) sum += column[r * from.part_step];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const float total = warp_reduce(sums[threadIdx.x][threadIdx.y], Sum{});
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.y;
  if (threadIdx.x == 0 && column < from.width) {
    T& to = gradient[from.first + column * from.column_step + s * from.sum_step];
    to = from_float<T>(to_float(to) + total);
  }
}

/// `gradient`: f32 or bf16.
inline void add_column_sums(const Tensor& gradient, const ColumnSums& from, Stream& stream) {
  visit_element(gradient.dtype, [&](auto zero) {
    using T = decltype(zero);
    const dim3 grid(grid_of(ceil_div(from.width, kWarp)), from.sums);
    add_parts<T><<<grid, dim3(kWarp, kWarp), 0, native(stream)>>>(elements<T>(gradient), from);
  });
  WEFT_CALL(cudaGetLastError());
}

inline constexpr int kColumnThreads = 256;

/// f(row, first column) for every group of W columns of every row; with sums, f(row, first column,
/// sums), and partial [gridDim.y, kSums, width] gets what f added to them. A thread keeps its
/// columns: threadIdx.x and blockIdx.x tell which, threadIdx.y and blockIdx.y its first row.
template <int W, int kSums, class F>
__global__ void __launch_bounds__(kColumnThreads, 2)
    over_rows(int64_t rows, int64_t width, F f, float* partial) {
  const int64_t c = thread_index() * W;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  int64_t r = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  if (c >= width) r = rows;  // all threads reach the barriers
  if constexpr (kSums == 0) {
    for (; r < rows; r += step) f(r, c);
  } else {
    __shared__ float shared[kColumnThreads];
    float sums[kSums][W] = {};
    for (; r < rows; r += step) f(r, c, sums);
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float total = column_reduce(sums[s][j], shared);
        if (threadIdx.y == 0 && c < width) {
          partial[(static_cast<int64_t>(blockIdx.y) * kSums + s) * width + c + j] = total;
        }
      }
    }
  }
}

/// Runs over_rows, its partial sums in the workspace of the stream. rows and width are not 0.
template <int W, int kSums, class F>
ColumnSums launch_over_rows(int64_t rows, int64_t width, const F& f, Stream& stream) {
  constexpr int64_t kBlocks = 1056;  // 8 for each of an H100's 132 multiprocessors
  const int64_t packs = ceil_div(width, W);
  int across = 1;  // threads of a block
  while (across < kWarp && across < packs) across *= 2;
  const dim3 block(across, kColumnThreads / across);
  const int64_t blocks_across = ceil_div(packs, across);
  const int64_t parts = std::clamp<int64_t>(kBlocks / blocks_across, 1, ceil_div(rows, block.y));
  float* partial = nullptr;
  if constexpr (kSums > 0) {
    const int64_t bytes = parts * kSums * width * static_cast<int64_t>(sizeof(float));
    partial = reinterpret_cast<float*>(cuda_stream(stream).workspace(bytes));
  }
  const dim3 grid(grid_of(blocks_across), static_cast<unsigned>(parts));
  over_rows<W, kSums><<<grid, block, 0, native(stream)>>>(rows, width, f, partial);
  WEFT_CALL(cudaGetLastError());
  return {partial, parts, kSums * width, width};
}

}  // namespace weft::cuda
