// What the state mixers' kernels are made of: tiles of 64 x 64 numbers in shared memory and
// products of them, 256 threads. bf16 goes through the tensor cores, f32 through fused
// multiply-adds; both add up in f32, in an order that the shapes alone decide.
#pragma once

#include <cstdint>
#include <type_traits>

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/mma.cuh"
#include "src/kernels/cuda/reduce.cuh"
#include "src/kernels/state_mixer.hpp"

namespace weft::cuda::state {

inline constexpr int kTile = static_cast<int>(kStateChunk);
inline constexpr int kThreads = 256;
inline constexpr int kBlock = 16;               // rows that a warp owns of a sum
inline constexpr int kBlocks = kTile / kBlock;  // of a tile

inline constexpr int tiles_of(int width) {
  return (width + kTile - 1) / kTile;
}

/// A matrix in global memory. `packs`: every row is whole packs of 16 bytes, each aligned to them.
template <class T>
struct View {
  T* data;
  int64_t step;  // from row to row
  int rows, columns;
  bool packs;

  __device__ bool has(int row, int column) const { return row < rows && column < columns; }
  __device__ T& at(int row, int column) const { return data[row * step + column]; }
  /// 0 outside.
  __device__ float value(int row, int column) const {
    return has(row, column) ? to_float(at(row, column)) : 0.0f;
  }
};

template <class T>
__device__ View<T> from_row(View<T> matrix, int row) {
  matrix.data += row * matrix.step;
  matrix.rows -= row;
  return matrix;
}

/// [B, T, H, D], innermost stride 1.
template <class T>
struct Rows {
  T* data;
  int64_t batch, token, head;  // strides
  int width;
  bool packs;

  static Rows of(const Tensor& t) {
    return {elements<std::remove_const_t<T>>(t),
            t.stride[0],
            t.stride[1],
            t.stride[2],
            static_cast<int>(t.dim(3)),
            rows_in_packs(t.dim(3), {&t})};
  }
  /// Tokens [begin, begin + count) of one head.
  __device__ View<T> view(int b, int h, int64_t begin, int count) const {
    return {data + b * batch + begin * token + h * head, token, count, width, packs};
  }
};

/// Rows x Columns numbers in shared memory. Rows are padded so that those which one access of a
/// warp touches lie in different banks.
template <class T, int RowCount = kTile, int Columns = kTile>
struct Tile {
  static constexpr int kStep = Columns + 16 / static_cast<int>(sizeof(T));
  alignas(16) T data[RowCount * kStep];

  __device__ T& at(int row, int column) { return data[row * kStep + column]; }
  __device__ const T& at(int row, int column) const { return data[row * kStep + column]; }
  __device__ const T* row(int r) const { return data + r * kStep; }
};

/// Calls f(row, first column) for the quads of a [RowCount, Columns] tile.
template <int RowCount = kTile, int Columns = kTile, class F>
__device__ void for_quads(F&& f) {
  constexpr int kQuads = Columns / 4;
  for (int i = threadIdx.x; i < RowCount * kQuads; i += kThreads) f(i / kQuads, i % kQuads * 4);
}

/// Calls f(row, first column) for the packs of 16 bytes of S in a [RowCount, Columns] tile, with
/// the number of each among those of the thread, a constant once unrolled.
template <class S, int RowCount, int Columns, class F>
__device__ void for_packs(F&& f) {
  constexpr int kAcross = Columns / kPack<S>, kAll = RowCount * kAcross;
#pragma unroll
  for (int n = 0; n < (kAll + kThreads - 1) / kThreads; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x);
    if (kAll % kThreads == 0 || i < kAll) f(n, i / kAcross, i % kAcross * kPack<S>);
  }
}

/// The tile of `from` at (row0, column0), every number times factor(row, column), both counted in
/// the tile. Zeros where there is nothing, whatever the factor. All is read before anything is
/// written, so that the latencies overlap.
template <int RowCount = kTile, int Columns = kTile, class T, class S, class F>
__device__ void load_tile(Tile<T, RowCount, Columns>& tile, const View<S>& from, int row0,
                          int column0, F&& factor) {
  using Element = std::remove_const_t<S>;
  constexpr int kEach = kPack<S>;
  Pack<Element, kEach> read[(RowCount * Columns / kEach + kThreads - 1) / kThreads];
  const auto left_at = [&](int row, int column) {
    return row0 + row < from.rows ? from.columns - column0 - column : 0;
  };
  if (from.packs) {
    for_packs<S, RowCount, Columns>([&](int n, int row, int column) {
      if (left_at(row, column) > 0) {
        read[n] =
            load_pack<kEach>(const_cast<const Element*>(&from.at(row0 + row, column0 + column)));
      }
    });
  } else {
    for_packs<S, RowCount, Columns>([&](int n, int row, int column) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (j < left_at(row, column)) {
          read[n].value[j] = from.at(row0 + row, column0 + column + j);
        }
      }
    });
  }
  for_packs<S, RowCount, Columns>([&](int n, int row, int column) {
    float v[kEach] = {};
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (j < left_at(row, column)) v[j] = to_float(read[n].value[j]) * factor(row, column + j);
    }
    store<kEach>(&tile.at(row, column), v);
  });
}

/// The same without a factor. The tile is there behind tiles_ready().
template <int RowCount = kTile, int Columns = kTile, class T, class S>
__device__ void load_tile(Tile<T, RowCount, Columns>& tile, const View<S>& from, int row0,
                          int column0) {
  if constexpr (std::is_same_v<std::remove_const_t<S>, T>) {
    if (from.packs) {
      for_packs<T, RowCount, Columns>([&](int, int row, int column) {
        T* to = &tile.at(row, column);
        if (row0 + row < from.rows && column0 + column < from.columns) {
          copy_beside(to, &from.at(row0 + row, column0 + column));
        } else {
          *reinterpret_cast<uint4*>(to) = uint4{};
        }
      });
      return;
    }
  }
  load_tile(tile, from, row0, column0, [](int, int) { return 1.0f; });
}

/// A barrier behind which all threads see the tiles that any has begun to load.
__device__ inline void tiles_ready() {
  close_copies();
  await_copies<0>();
  __syncthreads();
}

/// The tiles of 64 columns of a chunk's rows, or of any other `Count` places: all of them where
/// there is room, otherwise the one that was asked for last.
template <class T, int Count>
struct Tiles {
  Tile<T> tiles[Count];

  /// Loads all `count` tiles if there is room; load(i, tile) loads the i-th. They are there behind
  /// tiles_ready().
  template <class Load>
  __device__ void load(int count, Load&& load) {
    for (int i = 0; count <= Count && i < count; ++i) load(i, tiles[i]);
  }
  /// The i-th. All threads of the block call it.
  template <class Load>
  __device__ const Tile<T>& get(int count, int i, Load&& load) {
    if (count <= Count) return tiles[i];
    __syncthreads();
    load(i, tiles[0]);
    tiles_ready();
    return tiles[0];
  }
};

/// The same for the tiles of a View with 64 rows at most.
template <class T, int Count>
struct RowTiles {
  Tiles<T, Count> all;

  __device__ void load(const View<const T>& rows) {
    all.load(tiles_of(rows.columns),
             [&](int i, Tile<T>& tile) { load_tile(tile, rows, 0, i * kTile); });
  }
  __device__ const Tile<T>& get(const View<const T>& rows, int i) {
    return all.get(tiles_of(rows.columns), i,
                   [&](int n, Tile<T>& tile) { load_tile(tile, rows, 0, n * kTile); });
  }
};

/// A thread's part of a [64, Columns] sum of products. It owns kRows x kColumns of the numbers, all
/// of its rows inside one block of 16, and kRun of its columns are neighbours.
template <class T, int Columns = kTile>
class TileSum;

template <int Columns>
class TileSum<float, Columns> {
 public:
  static constexpr int kRows = 4;
  static constexpr int kColumns = Columns / kBlock;
  static constexpr int kRun = 1;
  static constexpr int kParts = 1;
  static constexpr int kColumnParts = kThreads / kWarp;
  float at[kRows][kColumns] = {};

  static __device__ int block() { return threadIdx.x / 64; }
  static __device__ int row(int i) { return static_cast<int>(threadIdx.x) / 16 * 4 + i; }
  static __device__ int column(int c) { return static_cast<int>(threadIdx.x) % 16 + 16 * c; }

  /// += op(a) op(b) over `depth` (a multiple of 16). op(a) is [64, depth], stored as [depth, 64]
  /// with `Ta`; op(b) is [depth, Columns], stored as [Columns, depth] with `Tb`. What a block of
  /// rows reads may differ in a, b and depth.
  template <bool Ta, bool Tb>
  __device__ void add(const float* a, int a_step, const float* b, int b_step, int depth = kTile) {
    add_blocks<Ta, Tb>(a, a_step, b_step, depth,
                       [&](int c) { return Tb ? b + 16 * c * b_step : b + 16 * c; });
  }

  /// The same with a pointer of its own for every 16 columns of op(b): start(c) is null for those
  /// that nothing is added to.
  template <bool Ta, bool Tb, class F>
  __device__ void add_blocks(const float* a, int a_step, int b_step, int depth, F&& start) {
    const int lane = static_cast<int>(threadIdx.x) % 16;
#pragma unroll 2
    for (int d = 0; d < depth; d += 4) {
      float x[kRows][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float quad[4];
        load<4>(Ta ? a + (d + i) * a_step + row(0) : a + row(i) * a_step + d, quad);
#pragma unroll
        for (int j = 0; j < 4; ++j) (Ta ? x[j][i] : x[i][j]) = quad[j];
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float* from = start(c);
        if (from == nullptr) continue;
        float y[4];
        if constexpr (Tb) {
          load<4>(from + lane * b_step + d, y);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) y[j] = from[(d + j) * b_step + lane];
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) at[i][c] = fmaf(x[i][j], y[j], at[i][c]);
        }
      }
    }
  }

  /// Sums over the row of what every thread has for its rows; all threads of the block call it.
  /// `shared` [kParts][64] gets parts of them.
  static __device__ void sum_rows(float (&value)[kRows], float* shared) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float sum = warp_reduce<16>(value[i], cuda::Sum{});
      if (threadIdx.x % 16 == 0) shared[row(i)] = sum;
    }
  }

  /// Sums over the rows, as parts: `shared` [kColumnParts][Columns]. All threads call it.
  __device__ void sum_columns(float* shared) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float sum = at[0][c];
#pragma unroll
      for (int i = 1; i < kRows; ++i) sum += at[i][c];
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 16);
      const int part = static_cast<int>(threadIdx.x) / kWarp;
      if (threadIdx.x % kWarp < 16) shared[part * Columns + column(c)] = sum;
    }
  }
};

template <int Columns>
class TileSum<bf16, Columns> {
 public:
  static constexpr int kRows = 2;
  static constexpr int kColumns = Columns / 8;
  static constexpr int kRun = 2;
  static constexpr int kParts = 2;
  static constexpr int kColumnParts = kBlocks;
  float at[kRows][kColumns] = {};

  static __device__ int block() { return static_cast<int>(threadIdx.x) / kWarp % kBlocks; }
  static __device__ int row(int i) {
    return block() * kBlock + static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * i;
  }
  static __device__ int column(int c) {
    return half() * (Columns / 2) + c / 2 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + c % 2;
  }

  template <bool Ta, bool Tb>
  __device__ void add(const bf16* a, int a_step, const bf16* b, int b_step, int depth = kTile) {
    add_blocks<Ta, Tb>(a, a_step, b_step, depth,
                       [&](int c) { return Tb ? b + 16 * c * b_step : b + 16 * c; });
  }

  template <bool Ta, bool Tb, class F>
  __device__ void add_blocks(const bf16* a, int a_step, int b_step, int depth, F&& start) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8, line = lane % 8;
    const int first = block() * kBlock;
    for (int d = 0; d < depth; d += 16) {
      uint32_t x[4];
      if constexpr (Ta) {
        load_matrices<true>(x, a + (d + matrix / 2 * 8 + line) * a_step + first + matrix % 2 * 8);
      } else {
        load_matrices<false>(x, a + (first + lane % 16) * a_step + d + lane / 16 * 8);
      }
#pragma unroll
      for (int pair = 0; pair < Columns / 32; ++pair) {  // 16 columns each
        const bf16* from = start(half() * (Columns / 32) + pair);
        if (from == nullptr) continue;
        uint32_t y[4];
        if constexpr (Tb) {
          load_matrices<false>(y, from + (matrix / 2 * 8 + line) * b_step + d + matrix % 2 * 8);
        } else {
          load_matrices<true>(y, from + (d + matrix % 2 * 8 + line) * b_step + matrix / 2 * 8);
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int c = 4 * pair + 2 * n;
          float sum[4] = {at[0][c], at[0][c + 1], at[1][c], at[1][c + 1]};
          multiply_add(sum, x, y[2 * n], y[2 * n + 1]);
          at[0][c] = sum[0], at[0][c + 1] = sum[1], at[1][c] = sum[2], at[1][c + 1] = sum[3];
        }
      }
    }
  }

  static __device__ void sum_rows(float (&value)[kRows], float* shared) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float sum = warp_reduce<4>(value[i], cuda::Sum{});
      if (threadIdx.x % 4 == 0) shared[half() * kTile + row(i)] = sum;
    }
  }

  __device__ void sum_columns(float* shared) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float sum = at[0][c] + at[1][c];
#pragma unroll
      for (int lanes = 4; lanes < kWarp; lanes *= 2)
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, lanes);
      if (threadIdx.x % kWarp < 4) shared[block() * Columns + column(c)] = sum;
    }
  }

 private:
  static __device__ int half() {
    return static_cast<int>(threadIdx.x) / kWarp / kBlocks;
  }
};

/// Calls f(row, column, number) for the numbers of a thread.
template <class T, int Columns, class F>
__device__ void for_each(TileSum<T, Columns>& sum, F&& f) {
#pragma unroll
  for (int i = 0; i < TileSum<T, Columns>::kRows; ++i) {
#pragma unroll
    for (int c = 0; c < TileSum<T, Columns>::kColumns; ++c) {
      f(sum.row(i), sum.column(c), sum.at[i][c]);
    }
  }
}

/// f(i, c, row, column) for the places of a thread's numbers: at[i][c].
template <class Sum, class F>
__device__ void for_places(F&& f) {
#pragma unroll
  for (int i = 0; i < Sum::kRows; ++i) {
#pragma unroll
    for (int c = 0; c < Sum::kColumns; ++c) f(i, c, Sum::row(i), Sum::column(c));
  }
}

/// f(i, c, row, column, constant n) for runs of n neighbours among a thread's numbers, at[i][c] to
/// at[i][c + n - 1], as far as `view` has them at column0 + column; n is above 1 where one access
/// takes the run.
template <class Sum, class E, class F>
__device__ void for_runs(const View<E>& view, int column0, F&& f) {
  const auto runs = [&](auto run) {
    constexpr int kRun = decltype(run)::value;
#pragma unroll
    for (int i = 0; i < Sum::kRows; ++i) {
#pragma unroll
      for (int c = 0; c < Sum::kColumns; c += kRun) {
        const int row = Sum::row(i), column = column0 + Sum::column(c);
        if (view.has(row, column)) f(i, c, row, column, run);
      }
    }
  };
  if (Sum::kRun > 1 && view.packs) {
    runs(std::integral_constant<int, Sum::kRun>{});
  } else {
    runs(std::integral_constant<int, 1>{});
  }
}

/// to[row, column0 + column] = the sum.
template <class T, int Columns, class E>
__device__ void store_to(const View<E>& to, int column0, const TileSum<T, Columns>& sum) {
  for_runs<TileSum<T, Columns>>(to, column0, [&](int i, int c, int row, int column, auto run) {
    float v[run.value];
#pragma unroll
    for (int j = 0; j < run.value; ++j) v[j] = sum.at[i][c + j];
    store<run.value>(&to.at(row, column), v);
  });
}

/// What `from` has at the places of a sum; nothing is written where it has none.
template <class T, int Columns, class E>
__device__ void read_from(const View<E>& from, int column0, TileSum<T, Columns>& sum) {
  for_runs<TileSum<T, Columns>>(from, column0, [&](int i, int c, int row, int column, auto run) {
    float v[run.value];
    load<run.value>(&from.at(row, column), v);
#pragma unroll
    for (int j = 0; j < run.value; ++j) sum.at[i][c + j] = v[j];
  });
}

/// to[row, column0 + column] += the sum. All is read before anything is written, so that the
/// latencies overlap.
template <class T, int Columns>
__device__ void add_to(const View<float>& to, int column0, const TileSum<T, Columns>& sum) {
  TileSum<T, Columns> total;
  read_from(to, column0, total);
  for_places<TileSum<T, Columns>>([&](int i, int c, int, int) { total.at[i][c] += sum.at[i][c]; });
  store_to(to, column0, total);
}

/// sum += op(a) op(b) of whole tiles.
template <bool Ta, bool Tb, class T, int Columns, int R, int C, int S, int D>
__device__ void add_product(TileSum<T, Columns>& sum, const Tile<T, R, C>& a,
                            const Tile<T, S, D>& b) {
  sum.template add<Ta, Tb>(a.data, a.kStep, b.data, b.kStep);
}

/// Runs a kernel of 256 threads a block, of more shared memory than a plain launch may have.
template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t blocks, size_t shared_bytes, Stream& stream,
            const Args&... args) {
  if (blocks == 0) return;
  WEFT_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<grid_of(blocks), kThreads, shared_bytes, native(stream)>>>(args...);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda::state
