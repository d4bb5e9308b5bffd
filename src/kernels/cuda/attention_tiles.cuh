// Tiles of the f32 attention kernels: 64 rows in shared memory, 256 threads, 4 x 4 results a
// thread. Thread (ty, tx) of 16 x 16 owns rows 4 ty + i; of a [64, 64] product the columns
// tx + 16 j, of a [64, D] product the columns 4 tx + 64 c + j. The sixteen threads of a row are
// half a warp.
#pragma once

#include "src/kernels/cuda/attention_rows.cuh"

namespace weft::cuda {

inline constexpr int kTile = 64;
inline constexpr int kOwn = 4;        // rows, and columns of a [64, 64] product, of a thread
inline constexpr int kRowLanes = 16;  // threads that share a row

/// Rows of head width up to D; what is past the width is zero. The padding keeps the rows that one
/// access of a warp touches in different banks.
template <int D>
struct RowTile {
  float at[kTile][D + 4];

  /// Rows [begin, end) of one (batch, head), zeros below them.
  __device__ void load(const TokenRows& from, int64_t b, int64_t h, int begin, int end, int dim) {
    constexpr int kQuads = D / 4;
    for (int i = threadIdx.x; i < kTile * kQuads; i += kTileThreads) {
      const int row = i / kQuads, column = i % kQuads * 4;
      float v[4] = {};
      if (begin + row < end && column < dim) {
        const int64_t offset = from.at(b, begin + row, h) + column;
        if (from.is_bf16) {
          read(reinterpret_cast<const bf16*>(from.data) + offset, v, from.packs, dim - column);
        } else {
          read(from.f32(offset), v, from.packs, dim - column);
        }
      }
      *reinterpret_cast<float4*>(&at[row][column]) = make_float4(v[0], v[1], v[2], v[3]);
    }
  }

 private:
  template <class T>
  static __device__ void read(const T* p, float (&v)[4], bool packs, int left) {
    if (packs) return cuda::load<4>(p, v);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < left) v[j] = to_float(p[j]);
    }
  }
};

/// Scores or probabilities.
struct ScoreTile {
  float at[kTile][kTile + 4];
};

__device__ inline int own_row(int i) {
  return threadIdx.x / kRowLanes * kOwn + i;
}
__device__ inline int own_column(int j) {
  return threadIdx.x % kRowLanes + kRowLanes * j;
}

/// sum = a b^T over the head width.
template <int D>
__device__ void product_abt(const RowTile<D>& a, const RowTile<D>& b, float (&sum)[kOwn][kOwn]) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) sum[i][j] = 0;
  }
#pragma unroll 4
  for (int d = 0; d < D; d += 4) {
    float4 x[kOwn], y[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      x[i] = *reinterpret_cast<const float4*>(&a.at[own_row(i)][d]);
      y[i] = *reinterpret_cast<const float4*>(&b.at[own_column(i)][d]);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        sum[i][j] += x[i].x * y[j].x + x[i].y * y[j].y + x[i].z * y[j].z + x[i].w * y[j].w;
      }
    }
  }
}

/// A thread's part of a [64, D] sum.
template <int D>
struct RowSum {
  static constexpr int kChunks = D / kTile;
  float at[kOwn][kChunks][4] = {};

  /// += p rows over all 64 columns of p.
  __device__ void add_product(const ScoreTile& p, const RowTile<D>& rows) {
#pragma unroll 2
    for (int k = 0; k < kTile; k += 4) {
      float4 weight[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        weight[i] = *reinterpret_cast<const float4*>(&p.at[own_row(i)][k]);
      }
      add_row(0, k, weight, rows, [](const float4& w) { return w.x; });
      add_row(1, k, weight, rows, [](const float4& w) { return w.y; });
      add_row(2, k, weight, rows, [](const float4& w) { return w.z; });
      add_row(3, k, weight, rows, [](const float4& w) { return w.w; });
    }
  }

  __device__ void scale(int i, float factor) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j) at[i][c][j] *= factor;
    }
  }

  /// target[row i] = f(target, sum) for the columns inside the head width.
  template <class F>
  __device__ void merge_row(int i, float* target, int dim, F&& f) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = threadIdx.x % kRowLanes * 4 + kTile * c;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (column + j < dim) target[column + j] = f(target[column + j], at[i][c][j]);
      }
    }
  }

 private:
  template <class Pick>
  __device__ void add_row(int offset, int k, const float4 (&weight)[kOwn], const RowTile<D>& rows,
                          Pick pick) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const float4 x = *reinterpret_cast<const float4*>(
          &rows.at[k + offset][threadIdx.x % kRowLanes * 4 + kTile * c]);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const float w = pick(weight[i]);
        at[i][c][0] += w * x.x;
        at[i][c][1] += w * x.y;
        at[i][c][2] += w * x.z;
        at[i][c][3] += w * x.w;
      }
    }
  }
};

}  // namespace weft::cuda
