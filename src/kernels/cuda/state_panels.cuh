// Products on the tensor cores for kernels that carry a whole state in registers: a block's warps
// share a sum of products in rectangles, operands are bf16 tiles in shared memory.
#pragma once

#include "src/kernels/cuda/state_shard.cuh"

namespace weft::cuda::state {

/// Rows of one chunk, padded with zeros to a width that the kernels are made for.
template <int Columns>
using Panel = Tile<bf16, kTile, Columns>;

/// Calls f(number among the thread's, row, first column) for the packs of 16 bytes in a [Rows,
/// Columns] tile of bf16.
template <int Threads, int Rows, int Columns, class F>
__device__ void for_packs_of(F&& f) {
  constexpr int kAcross = Columns / kPack<bf16>;
  static_assert(Rows * kAcross % Threads == 0 && Threads % kAcross == 0);
  const int row = static_cast<int>(threadIdx.x) / kAcross;
  const int column = static_cast<int>(threadIdx.x) % kAcross * kPack<bf16>;
#pragma unroll
  for (int i = 0; i < Rows * kAcross / Threads; ++i) f(i, row + i * (Threads / kAcross), column);
}

/// Loads a panel beside the computation; rows that do not come in packs, at once. All threads of
/// the block call it.
template <int Threads, int Columns>
__device__ void load_panel(Panel<Columns>& panel, const View<const bf16>& from) {
  if (from.packs) {
    for_packs_of<Threads, kTile, Columns>([&](int, int row, int column) {
      const bool there = from.has(row, column);
      copy_or_zero(&panel.at(row, column), there ? &from.at(row, column) : from.data, there);
    });
  } else {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kTile * Columns; i += Threads) {
      const int row = i / Columns, column = i % Columns;
      panel.at(row, column) = from_float<bf16>(from.value(row, column));
    }
  }
}

/// Two neighbours of a row of bf16, each times a factor, rounded once.
__device__ inline uint32_t scaled(uint32_t pair, float first, float second) {
  const __nv_bfloat162 product = __floats2bfloat162_rn(
      __uint_as_float(pair << 16) * first, __uint_as_float(pair & 0xFFFF0000u) * second);
  return reinterpret_cast<const uint32_t&>(product);
}

/// An [M, N] sum of products that a block of `Warps` warps holds. A warp has a rectangle of kRows x
/// kColumns fragments of 16 x 8; numbers 0 and 1 of a fragment are neighbours in a row of it, 2 and
/// 3 those 8 rows below.
template <int M, int N, int Warps>
class WarpSum {
 public:
  static constexpr int kDown = Warps == 8 && M < N ? 2 : 4;  // warps above each other
  static constexpr int kAcross = Warps / kDown;
  static constexpr int kRows = M / kDown / 16, kColumns = N / kAcross / 8;
  float at[kRows][kColumns][4] = {};

  static __device__ int down() { return static_cast<int>(threadIdx.x) / kWarp / kAcross; }
  static __device__ int across() { return static_cast<int>(threadIdx.x) / kWarp % kAcross; }
  static __device__ int row(int i, int half) {
    return (down() * kRows + i) * 16 + static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * half;
  }
  static __device__ int column(int c) {
    return (across() * kColumns + c) * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
  }

  /// += op(a) op(b): a is [M, D], stored as [D, M] with `Ta`; b is [D, N], stored as [N, D] with
  /// `Tb`.
  template <bool Ta, bool Tb, int Ra, int Ca, int Rb, int Cb>
  __device__ void add(const Tile<bf16, Ra, Ca>& a, const Tile<bf16, Rb, Cb>& b) {
    static_assert((Ta ? Ca : Ra) == M && (Tb ? Rb : Cb) == N && (Ta ? Ra : Ca) == (Tb ? Cb : Rb));
    add_steps<Ta, Tb>(a, b, [](uint32_t(&)[4], int) {});
  }

  /// += a^T b with row t of a times factor(t).
  template <int Depth, class F>
  __device__ void add_scaled(const Tile<bf16, Depth, M>& a, const Tile<bf16, Depth, N>& b,
                             F&& factor) {
    float f[4];  // of the rows that the lane's fragments of this step have
    int of_step = -1;
    add_steps<true, false>(a, b, [&](uint32_t(&x)[4], int d) {
      if (of_step != d) {
        const int t = d + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) f[i] = factor(t + i / 2 * 8 + i % 2);
        of_step = d;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = scaled(x[i], f[i / 2 * 2], f[i / 2 * 2 + 1]);
    });
  }

  __device__ void operator*=(float factor) {
    for_rows([&](int i, int half, int) { scale_row(i, half, factor); });
  }
  /// Row row(i, half), as far as the thread has it.
  __device__ void scale_row(int i, int half, float factor) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      at[i][c][2 * half] *= factor;
      at[i][c][2 * half + 1] *= factor;
    }
  }

  /// f(i, half, row) for the thread's rows.
  template <class F>
  static __device__ void for_rows(F&& f) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) f(i, half, row(i, half));
    }
  }
  /// f(row, column, first, second) for its pairs of neighbours in a row.
  template <class F>
  __device__ void for_pairs(F&& f) {
    for_rows([&](int i, int half, int row) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        f(row, column(c), at[i][c][2 * half], at[i][c][2 * half + 1]);
    });
  }

  /// `shared` [kAcross][M] gets parts of the sums over the rows of value(i, half), each thread's
  /// own.
  template <class F>
  static __device__ void sum_rows(float* shared, F&& value) {
    for_rows([&](int i, int half, int row) {
      const float sum = warp_reduce<4>(value(i, half), cuda::Sum{});
      if (threadIdx.x % 4 == 0) shared[across() * M + row] = sum;
    });
  }

  /// The product of row row(i, half) with that of a tile, as far as the thread has it.
  __device__ float dot(int i, int half, const Tile<bf16, M, N>& tile) const {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float own[2];
      load<2>(&tile.at(row(i, half), column(c)), own);
      sum = fmaf(own[0], at[i][c][2 * half], sum);
      sum = fmaf(own[1], at[i][c][2 * half + 1], sum);
    }
    return sum;
  }

  /// `shared` [kAcross][M] gets parts of the sums over its rows of its products with `with`.
  __device__ void sum_products(float* shared, const View<const float>& with) const {
    sum_rows(shared, [&](int i, int half) {
      float sum = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int r = row(i, half), first = column(c);
        float pair[2] = {};
        if (with.packs) {
          if (with.has(r, first)) load<2>(&with.at(r, first), pair);
        } else {
          pair[0] = with.value(r, first), pair[1] = with.value(r, first + 1);
        }
        sum = fmaf(pair[0], at[i][c][2 * half], sum);
        sum = fmaf(pair[1], at[i][c][2 * half + 1], sum);
      }
      return sum;
    });
  }

  /// Rounds it to a tile.
  __device__ void round_to(Tile<bf16, M, N>& tile) {
    for_pairs([&](int row, int column, float& first, float& second) {
      *reinterpret_cast<__nv_bfloat162*>(&tile.at(row, column)) =
          __floats2bfloat162_rn(first, second);
    });
  }
  /// Stores what `to` has places for.
  template <class E>
  __device__ void store_to(const View<E>& to) {
    if (to.packs) {
      for_pairs([&](int row, int column, float& first, float& second) {
        if (to.has(row, column)) store<2>(&to.at(row, column), {first, second});
      });
    } else {
      for_pairs([&](int row, int column, float& first, float& second) {
        if (to.has(row, column)) to.at(row, column) = from_float<E>(first);
        if (to.has(row, column + 1)) to.at(row, column + 1) = from_float<E>(second);
      });
    }
  }
  /// 0 where `from` has nothing.
  template <class E>
  __device__ void load_from(const View<E>& from) {
    if (from.packs) {
      for_pairs([&](int row, int column, float& first, float& second) {
        float pair[2] = {};
        if (from.has(row, column)) load<2>(&from.at(row, column), pair);
        first = pair[0], second = pair[1];
      });
    } else {
      for_pairs([&](int row, int column, float& first, float& second) {
        first = from.value(row, column);
        second = from.value(row, column + 1);
      });
    }
  }

 private:
  /// change(fragment of a, d) before the fragment of rows d to d + 15 of the depth is used.
  template <bool Ta, bool Tb, int Ra, int Ca, int Rb, int Cb, class F>
  __device__ void add_steps(const Tile<bf16, Ra, Ca>& a, const Tile<bf16, Rb, Cb>& b, F&& change) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8, line = lane % 8;
    const int row0 = down() * kRows * 16, column0 = across() * kColumns * 8;
#pragma unroll
    for (int d = 0; d < (Ta ? Ra : Ca); d += 16) {
      uint32_t x[kRows][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int first = row0 + 16 * i;
        if constexpr (Ta) {
          load_matrices<true>(x[i], &a.at(d + matrix / 2 * 8 + line, first + matrix % 2 * 8));
        } else {
          load_matrices<false>(x[i], &a.at(first + lane % 16, d + lane / 16 * 8));
        }
        change(x[i], d);
      }
#pragma unroll
      for (int c = 0; c < kColumns; c += 2) {
        const int first = column0 + 8 * c;
        uint32_t y[4];
        if constexpr (Tb) {
          load_matrices<false>(y, &b.at(first + matrix / 2 * 8 + line, d + matrix % 2 * 8));
        } else {
          load_matrices<true>(y, &b.at(d + matrix % 2 * 8 + line, first + matrix / 2 * 8));
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          multiply_add(at[i][c], x[i], y[0], y[1]);
          multiply_add(at[i][c + 1], x[i], y[2], y[3]);
        }
      }
    }
  }
};

}  // namespace weft::cuda::state
