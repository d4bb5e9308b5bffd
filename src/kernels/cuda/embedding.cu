// Forward gathers rows. Backward sorts the tokens (a stable sort, so that equal ids keep the order
// of their rows) and lets one block own one id: no atomics, the same bits on every run.
#include <cub/device/device_radix_sort.cuh>

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;

/// An id outside the vocabulary reads as NaN: the loss and the gradient norm show it.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    gather(T* y, const T* table, const int32_t* tokens, int64_t rows, int64_t width, int64_t vocab,
           int64_t y_stride, int64_t table_stride) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const int64_t token = tokens[r];
  const bool known = token >= 0 && token < vocab;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * W; c < width; c += blockDim.x * W) {
    Pack<T, W> pack;
    if (known) {
      pack = *reinterpret_cast<const Pack<T, W>*>(table + token * table_stride + c);
    } else {
      for (T& value : pack.value) value = from_float<T>(NAN);
    }
    *reinterpret_cast<Pack<T, W>*>(y + r * y_stride + c) = pack;
  }
}

__global__ void __launch_bounds__(kThreads) number(int32_t* rows, int64_t n) {
  const int64_t i = thread_index();
  if (i < n) rows[i] = static_cast<int32_t>(i);
}

constexpr int kLanes = 8;  // rows of one id that a block adds at a time, kWarp columns wide

/// Where the run of equal ids that starts at `begin` ends.
__device__ int64_t end_of_run(const int32_t* ids, int64_t begin, int64_t n) {
  int64_t low = begin + 1, high = begin + 2;  // doubling, then halving: most runs are short
  while (high < n && ids[high - 1] == ids[begin]) {
    low = high;
    high = begin + 2 * (high - begin);
  }
  high = high < n ? high : n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ids[middle] == ids[begin]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// dtable[ids[p]] += the dy rows of the run that starts at sorted position p = blockIdx.x, for
/// W kWarp columns. Lane y adds every kLanes-th row of the run; the lanes are added in order.
template <class T, class G, int W>
__global__ void __launch_bounds__(kWarp* kLanes)
    scatter(G* dtable, const T* dy, const int32_t* ids, const int32_t* rows, int64_t n,
            int64_t width, int64_t vocab, int64_t table_stride, int64_t dy_stride) {
  __shared__ float shared[kLanes][kWarp * W];
  const int64_t begin = blockIdx.x;
  const int64_t id = ids[begin];
  if ((begin > 0 && ids[begin - 1] == id) || id < 0 || id >= vocab) return;
  const int64_t end = end_of_run(ids, begin, n);
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kWarp + threadIdx.x) * W;
  float sum[W] = {};
  if (c < width) {
#pragma unroll 4
    for (int64_t p = begin + threadIdx.y; p < end; p += kLanes) {
      float x[W];
      load<W>(dy + rows[p] * dy_stride + c, x);
#pragma unroll
      for (int j = 0; j < W; ++j) sum[j] += x[j];
    }
  }
#pragma unroll
  for (int j = 0; j < W; ++j) shared[threadIdx.y][threadIdx.x * W + j] = sum[j];
  __syncthreads();
  const int64_t lanes = end - begin < kLanes ? end - begin : kLanes;
  const int first = threadIdx.y * kWarp + threadIdx.x;
  for (int i = first; i < kWarp * W; i += kWarp * kLanes) {
    const int64_t column = static_cast<int64_t>(blockIdx.y) * kWarp * W + i;
    if (column >= width) break;
    float total = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) total += shared[lane][i];
    G& out = dtable[id * table_stride + column];
    out = from_float<G>(to_float(out) + total);
  }
}

/// Tokens in order, and the row that each came from.
struct Sorted {
  int32_t* ids;
  int32_t* rows;
};

Sorted sort_tokens(const int32_t* tokens, int64_t n, CudaStream& stream) {
  size_t scratch_bytes = 0;
  const auto sort = [&](void* scratch, Sorted sorted, const int32_t* numbers) {
    WEFT_CALL(cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, tokens, sorted.ids, numbers,
                                              sorted.rows, n, 0, 32, stream.get()));
  };
  sort(nullptr, {}, nullptr);  // asks for the size
  Sorted sorted{};
  int32_t* numbers = nullptr;
  std::byte* scratch = nullptr;
  const auto carve = [&](Carver carver) {
    sorted = {carver.take<int32_t>(n), carver.take<int32_t>(n)};
    numbers = carver.take<int32_t>(n);
    scratch = carver.take<std::byte>(static_cast<int64_t>(scratch_bytes));
    return carver.bytes();
  };
  carve(Carver(stream.workspace(carve(Carver()))));
  number<<<grid_of(ceil_div(n, kThreads)), kThreads, 0, stream.get()>>>(numbers, n);
  WEFT_CALL(cudaGetLastError());
  sort(scratch, sorted, numbers);
  return sorted;
}

}  // namespace

void embedding_forward(const EmbeddingArgs& args, Stream& stream) {
  const int64_t rows = args.y.dim(0), width = args.y.dim(1);
  if (args.y.numel() == 0) return;
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.y, &args.table}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const unsigned across = ceil_div(width, W) > kWarp * 4 ? kWarp * 8 : kWarp;
      const dim3 block(across, kThreads / across);
      gather<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.y), elements<T>(args.table), elements<int32_t>(args.tokens), rows, width,
          args.table.dim(0), args.y.stride[0], args.table.stride[0]);
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void embedding_backward(const EmbeddingGradArgs& args, Stream& stream) {
  const int64_t n = args.dy.dim(0), width = args.dy.dim(1);
  if (args.dy.numel() == 0) return;
  WEFT_CHECK(n <= INT32_MAX, n, " tokens");
  const Sorted sorted = sort_tokens(elements<int32_t>(args.tokens), n, cuda_stream(stream));
  visit_element(args.dy.dtype, [&](auto zero) {
    visit_element(args.dtable.dtype, [&](auto gradient_zero) {
      using T = decltype(zero);
      using G = decltype(gradient_zero);
      with_width<T>(rows_in_packs(width, {&args.dy}), [&](auto w) {
        constexpr int W = decltype(w)::value;
        const dim3 grid(grid_of(n), grid_of(ceil_div(width, kWarp * W)));
        scatter<T, G, W><<<grid, dim3(kWarp, kLanes), 0, native(stream)>>>(
            elements<G>(args.dtable), elements<T>(args.dy), sorted.ids, sorted.rows, n, width,
            args.dtable.dim(0), args.dtable.stride[0], args.dy.stride[0]);
      });
    });
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
