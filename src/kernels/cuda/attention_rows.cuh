// Blocks of attention, their tokens and their rows as kernels see them.
#pragma once

#include "src/kernels/attention.hpp"
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

struct Row {
  int64_t b, h, t;
};
/// The rows of [B, T, heads, D] in the order in which they lie in memory.
struct MemoryOrder {
  unsigned rows, tokens, heads, dim;

  static MemoryOrder of(const Tensor& t) {
    const int64_t rows = t.dim(0) * t.dim(1) * t.dim(2);
    WEFT_CHECK(rows <= INT32_MAX, t.text());  // a division by 64 bits takes as long as the row
    return {static_cast<unsigned>(rows), static_cast<unsigned>(t.dim(1)),
            static_cast<unsigned>(t.dim(2)), static_cast<unsigned>(t.dim(3))};
  }
  __device__ Row at(unsigned row) const {
    const unsigned token = row / heads;
    return {token / tokens, row % heads, token % tokens};
  }
};

/// Calls `f` with the number of elements of a row that an access takes, as a constant: 4, or 1
/// where rows of one of the tensors do not start on 16 bytes.
template <class F>
void with_access(int64_t dim, std::initializer_list<const Tensor*> tensors, F&& f) {
  if (rows_in_packs(dim, tensors)) {
    f(std::integral_constant<int, 4>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

/// What a backward pass reads and adds to, beside the block.
struct Gradients {
  TokenRows dq, dk, dv, dout;
  RowNumbers lse, delta;

  static Gradients of(const AttentionBackwardArgs& args) {
    return {TokenRows::of(args.dq),   TokenRows::of(args.dk),   TokenRows::of(args.dv),
            TokenRows::of(args.dout), RowNumbers::of(args.lse), RowNumbers::of(args.delta)};
  }
};

/// One block of queries and keys as the kernels see it.
struct BlockView {
  TokenRows q, k, v;
  const int64_t* key_begin;
  const int64_t* key_end;
  int64_t begin_stride, end_stride;  // of a sequence
  int64_t first_key;
  int queries, keys, heads, group, dim;
  float scale;

  /// Local keys [x, y) that query t of sequence b sees; empty past the queries.
  __device__ int2 interval(int64_t b, int t) const {
    if (t >= queries) return {0, 0};
    const auto local = [&](int64_t key, int64_t low) {
      key -= first_key;
      return key < low ? low : (key > keys ? static_cast<int64_t>(keys) : key);
    };
    const int64_t low = local(key_begin[b * begin_stride + t], 0);
    const int64_t high = local(key_end[b * end_stride + t], low);
    return {static_cast<int>(low), static_cast<int>(high)};
  }
};

__device__ inline bool sees(int2 interval, int key_begin, int key_end) {
  return max(interval.x, key_begin) < min(interval.y, key_end);
}

inline BlockView view_of(const AttentionBlock& block) {
  const int64_t queries = block.q.dim(1), keys = block.k.dim(1), dim = block.q.dim(3);
  constexpr int64_t kMost = INT32_MAX - 256;  // tiles end past the last row
  WEFT_CHECK(queries <= kMost && keys <= kMost, queries, " queries, ", keys, " keys");
  return {TokenRows::of(block.q),
          TokenRows::of(block.k),
          TokenRows::of(block.v),
          elements<int64_t>(block.key_begin),
          elements<int64_t>(block.key_end),
          block.key_begin.stride[0],
          block.key_end.stride[0],
          block.first_key,
          static_cast<int>(queries),
          static_cast<int>(keys),
          static_cast<int>(block.q.dim(2)),
          static_cast<int>(block.q.dim(2) / block.k.dim(2)),
          static_cast<int>(dim),
          static_cast<float>(block.scale)};
}

/// Calls `f` with the width of the tiles that hold heads of `dim`, as a constant.
template <class F>
void with_tile_width(int64_t dim, F&& f) {
  WEFT_CHECK(dim <= 128, "the CUDA kernels take heads up to 128 wide, not ", dim);
  if (dim <= 64) {
    f(std::integral_constant<int, 64>{});
  } else {
    f(std::integral_constant<int, 128>{});
  }
}

/// Launches a kernel that needs more shared memory than a plain launch may have.
template <class Kernel, class... Args>
void launch_tiles(Kernel kernel, dim3 grid, size_t shared_bytes, Stream& stream,
                  const Args&... args) {
  WEFT_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes)));
  kernel<<<grid, kTileThreads, shared_bytes, native(stream)>>>(args...);
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
