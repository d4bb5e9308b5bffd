// Forward gathers rows. Backward sorts the tokens (a stable sort, so that equal ids keep the order
// of their rows) and lets one block own one id; ids of many rows are cut into pieces whose sums are
// added in order. No atomics: the same bits on every run.
#include <cub/device/device_radix_sort.cuh>

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/pointwise.hpp"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;

/// The rows of a table that tokens name.
struct Table {
  const int32_t* tokens;
  int64_t begin, rows;  // tokens [begin, begin + rows) have one
  int64_t vocab, stride;
};

/// An id outside the vocabulary reads as NaN: the loss and the gradient norm show it.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    gather(T* y, const T* table, const Table a, int64_t rows, int64_t width, int64_t y_stride) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (r >= rows) return;
  const int64_t token = a.tokens[r], row = token - a.begin;
  const bool known = token >= 0 && token < a.vocab, own = row >= 0 && row < a.rows;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * W; c < width; c += blockDim.x * W) {
    Pack<T, W> pack;
    if (known && own) {
      pack = load_pack<W>(table + row * a.stride + c);
    } else {
      for (T& value : pack.value) value = from_float<T>(known ? 0.0f : NAN);
    }
    *reinterpret_cast<Pack<T, W>*>(y + r * y_stride + c) = pack;
  }
}

__global__ void __launch_bounds__(kThreads) number(int32_t* rows, int64_t n) {
  const int64_t i = thread_index();
  if (i < n) rows[i] = static_cast<int32_t>(i);
}

/// Runs of equal ids, cut at multiples of `tile`: no block adds more rows than that. A cut run
/// leaves a sum per tile it touches in `partial` [tiles, 2, width]: place 0 for the part that began
/// in an earlier tile, place 1 for the part that begins in this one.
struct Runs {
  const int32_t* ids;   // sorted
  const int32_t* rows;  // where each came from
  float* partial;
  int64_t n, width, tile;
  int64_t vocab_begin, table_rows;

  __device__ bool continues(int64_t p) const { return p > 0 && ids[p - 1] == ids[p]; }

  /// The row of dtable that an id has; -1 for an id of other ranks' rows.
  __device__ int64_t row_of(int64_t id) const {
    const int64_t row = id - vocab_begin;
    return row >= 0 && row < table_rows ? row : -1;
  }

  /// Where the run at p ends, at most at `end`.
  __device__ int64_t end_of_run(int64_t p, int64_t end) const {
    int64_t low = p + 1, high = end;
    if (low == high || ids[low] != ids[p]) return low;  // most runs are short
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ids[middle] == ids[p]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

/// target = sum, or += with Add, in accesses of at most 16 bytes.
template <bool Add, class G, int W>
__device__ void put(G* target, const float (&sum)[W]) {
  constexpr int kStep = W < kPack<G> ? W : kPack<G>;
#pragma unroll
  for (int j = 0; j < W; j += kStep) {
    float out[kStep] = {};
    if constexpr (Add) load<kStep>(target + j, out);
#pragma unroll
    for (int i = 0; i < kStep; ++i) out[i] += sum[j + i];
    store<kStep>(target + j, out);
  }
}

/// The piece of a run that starts at sorted position blockIdx.x: its rows of dy are added in order
/// and go to dtable, or, of a cut run, to `partial`.
template <class T, class G, int W>
__global__ void __launch_bounds__(kThreads)
    add_pieces(G* dtable, const T* dy, Runs runs, int64_t table_stride, int64_t dy_stride) {
  const int64_t begin = blockIdx.x;
  const bool continued = runs.continues(begin);
  if (continued && begin % runs.tile != 0) return;  // inside a piece
  const int64_t id = runs.ids[begin];
  const int64_t row = runs.row_of(id);
  if (row < 0) return;
  const int64_t tile = begin / runs.tile;
  const int64_t tile_end = min((tile + 1) * runs.tile, runs.n);
  const int64_t end = runs.end_of_run(begin, tile_end);
  const bool cut = continued || (end == tile_end && end < runs.n && runs.ids[end] == id);
  float* partial = runs.partial + (2 * tile + (continued ? 0 : 1)) * runs.width;
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * W; c < runs.width; c += blockDim.x * W) {
    float sum[W] = {};
#pragma unroll 8
    for (int64_t p = begin; p < end; ++p) {
      float x[W];
      load<W>(dy + runs.rows[p] * dy_stride + c, x);
#pragma unroll
      for (int j = 0; j < W; ++j) sum[j] += x[j];
    }
    if (cut) {
      put<false>(partial + c, sum);
    } else {
      put<true>(dtable + row * table_stride + c, sum);
    }
  }
}

/// A cut run that begins in tile blockIdx.x: its sums, tile by tile. blockIdx.y: which columns.
template <class G>
__global__ void __launch_bounds__(kThreads)
    add_cut_runs(G* dtable, Runs runs, int64_t table_stride) {
  const int64_t next = (blockIdx.x + int64_t{1}) * runs.tile;
  if (next >= runs.n || !runs.continues(next)) return;
  const int64_t id = runs.ids[next], row = runs.row_of(id);
  const int64_t begin = blockIdx.x * runs.tile;
  if (row < 0 || (runs.ids[begin] == id && runs.continues(begin))) return;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (c >= runs.width) return;
  const int64_t last = (runs.end_of_run(next, runs.n) - 1) / runs.tile;
  float sum = runs.partial[(2 * blockIdx.x + 1) * runs.width + c];
#pragma unroll 8
  for (int64_t tile = next / runs.tile; tile <= last; ++tile) {
    sum += runs.partial[2 * tile * runs.width + c];
  }
  G& out = dtable[row * table_stride + c];
  out = from_float<G>(to_float(out) + sum);
}

/// Positions of a tile: few, so that no block is long at work, unless the partial sums outgrow
/// their share of the workspace. A function of the shape alone.
int64_t tile_of(int64_t n, int64_t width) {
  constexpr int64_t kFloats = int64_t{6} << 20;
  int64_t tile = 64;
  while (2 * ceil_div(n, tile) * width > kFloats && tile < n) tile *= 2;
  return tile;
}

Runs sort_tokens(const EmbeddingGradArgs& args, CudaStream& stream) {
  Runs runs{.n = args.dy.dim(0),
            .width = args.dy.dim(1),
            .vocab_begin = args.vocab_begin,
            .table_rows = args.dtable.dim(0)};
  runs.tile = tile_of(runs.n, runs.width);
  const int32_t* tokens = elements<int32_t>(args.tokens);
  int32_t *ids = nullptr, *rows = nullptr, *numbers = nullptr;
  size_t scratch_bytes = 0;
  const auto sort = [&](void* scratch) {  // without scratch: asks for its size
    WEFT_CALL(cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, tokens, ids, numbers, rows,
                                              runs.n, 0, 32, stream.get()));
  };
  sort(nullptr);
  std::byte* scratch = nullptr;
  const auto carve = [&](Carver carver) {
    ids = carver.take<int32_t>(runs.n);
    rows = carver.take<int32_t>(runs.n);
    numbers = carver.take<int32_t>(runs.n);
    runs.partial = carver.take<float>(2 * ceil_div(runs.n, runs.tile) * runs.width);
    scratch = carver.take<std::byte>(static_cast<int64_t>(scratch_bytes));
    return carver.bytes();
  };
  carve(Carver(stream.workspace(carve(Carver()))));
  number<<<grid_of(ceil_div(runs.n, kThreads)), kThreads, 0, stream.get()>>>(numbers, runs.n);
  WEFT_CALL(cudaGetLastError());
  sort(scratch);
  runs.ids = ids;
  runs.rows = rows;
  return runs;
}

}  // namespace

void embedding_forward(const EmbeddingArgs& args, Stream& stream) {
  const int64_t rows = args.y.dim(0), width = args.y.dim(1);
  if (args.y.numel() == 0) return;
  const Table table{.tokens = elements<int32_t>(args.tokens),
                    .begin = args.vocab_begin,
                    .rows = args.table.dim(0),
                    .vocab = args.vocab,
                    .stride = args.table.stride[0]};
  visit_element(args.y.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(rows_in_packs(width, {&args.y, &args.table}), [&](auto w) {
      constexpr int W = decltype(w)::value;
      const unsigned across = ceil_div(width, W) > kWarp * 4 ? kWarp * 8 : kWarp;
      const dim3 block(across, kThreads / across);
      gather<T, W><<<grid_of(ceil_div(rows, block.y)), block, 0, native(stream)>>>(
          elements<T>(args.y), elements<T>(args.table), table, rows, width, args.y.stride[0]);
    });
  });
  WEFT_CALL(cudaGetLastError());
}

void embedding_backward(const EmbeddingGradArgs& args, Stream& stream) {
  const int64_t n = args.dy.dim(0), width = args.dy.dim(1);
  if (args.dy.numel() == 0) return;
  WEFT_CHECK(n <= INT32_MAX, n, " tokens");
  const Runs runs = sort_tokens(args, cuda_stream(stream));
  const int64_t table_stride = args.dtable.stride[0];
  visit_element(args.dtable.dtype, [&](auto gradient_zero) {
    using G = decltype(gradient_zero);
    G* dtable = elements<G>(args.dtable);
    visit_element(args.dy.dtype, [&](auto zero) {
      using T = decltype(zero);
      with_width<T>(rows_in_packs(width, {&args.dy, &args.dtable}), [&](auto w) {
        constexpr int W = decltype(w)::value;
        const unsigned threads = static_cast<unsigned>(
            std::min<int64_t>(kThreads, ceil_div(ceil_div(width, W), kWarp) * kWarp));
        add_pieces<T, G, W><<<grid_of(n), threads, 0, native(stream)>>>(
            dtable, elements<T>(args.dy), runs, table_stride, args.dy.stride[0]);
      });
    });
    WEFT_CALL(cudaGetLastError());
    const dim3 tiles(grid_of(ceil_div(n, runs.tile)), grid_of(ceil_div(width, kThreads)));
    add_cut_runs<G><<<tiles, kThreads, 0, native(stream)>>>(dtable, runs, table_stride);
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
