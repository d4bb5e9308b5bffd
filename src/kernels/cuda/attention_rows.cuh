// Tokens, rows and row numbers of attention as kernels see them.
#pragma once

#include "src/kernels/cuda/elements.cuh"
#include "src/kernels/cuda/reduce.cuh"

namespace weft::cuda {

inline constexpr int kTileThreads = 256;

/// [B, T, heads, D] in f32 or bf16, innermost stride 1. Arithmetic is in f32 either way.
struct TokenRows {
  std::byte* data;
  int64_t batch, token, head;  // strides
  bool is_bf16;
  bool packs;  // rows can be read 4 elements at a time

  static TokenRows of(const Tensor& t) {
    WEFT_CHECK(t.device == Device::cuda && (t.dtype == DType::f32 || t.dtype == DType::bf16),
               t.text());
    return {t.data,
            t.stride[0],
            t.stride[1],
            t.stride[2],
            t.dtype == DType::bf16,
            rows_in_packs(t.dim(3), {&t})};
  }
  __device__ int64_t at(int64_t b, int64_t t, int64_t h) const {
    return b * batch + t * token + h * head;
  }
  __device__ float* f32(int64_t offset) const { return reinterpret_cast<float*>(data) + offset; }
};

/// [B, H, T] numbers in f32, innermost stride 1: log-sum-exps and deltas.
struct RowNumbers {
  float* data;
  int64_t batch, head;  // strides

  static RowNumbers of(const Tensor& t) { return {elements<float>(t), t.stride[0], t.stride[1]}; }
  __device__ float& at(int64_t b, int64_t h, int64_t t) const {
    return data[b * batch + h * head + t];
  }
};

/// The rows of [B, H, Tq], one a warp.
struct RowShape {
  int64_t rows, heads, queries, dim;

  static RowShape of(const Tensor& out) {  // [B, Tq, H, D]
    return {out.dim(0) * out.dim(1) * out.dim(2), out.dim(2), out.dim(1), out.dim(3)};
  }
  unsigned blocks() const { return grid_of(ceil_div(rows, kTileThreads / kWarp)); }
};
struct Row {
  int64_t b, h, t;

  static __device__ Row of(int64_t row, const RowShape& s) {
    return {row / (s.queries * s.heads), row / s.queries % s.heads, row % s.queries};
  }
};

}  // namespace weft::cuda
