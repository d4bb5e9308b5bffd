#include "src/kernels/rope.hpp"

#include "src/kernels/cuda/elements.cuh"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostFrequencies = 256;

/// By value: the launch copies it, so that the host's vector need not outlive the call.
struct Frequencies {
  double value[kMostFrequencies];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    table(T* cos_out, T* sin_out, const int64_t* positions, const __grid_constant__ Frequencies f,
          int64_t n, int half) {
  const int64_t i = thread_index();
  if (i >= n) return;
  double sine, cosine;
  sincos(static_cast<double>(positions[i / half]) * f.value[i % half], &sine, &cosine);
  cos_out[i] = from_float<T>(static_cast<float>(cosine));
  sin_out[i] = from_float<T>(static_cast<float>(sine));
}

struct Rotation {
  int64_t tokens, heads, packs;  // of a sequence, of a token, of half a head
  int64_t x_batch, x_token, x_head;
  int64_t table_batch, table_token;
  int64_t half;
  float sign;
};

/// One thread turns W pairs of one head; the heads of a token are neighbours, so its row of the
/// table comes from the cache for all but the first.
template <class T, int W>
__global__ void __launch_bounds__(kThreads)
    rotate(T* x, const float* cos_table, const float* sin_table, Rotation r, int64_t n) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const int64_t pair = i % r.packs * W;
  const int64_t h = i / r.packs % r.heads;
  const int64_t t = i / (r.packs * r.heads) % r.tokens;
  const int64_t b = i / (r.packs * r.heads * r.tokens);
  T* head = x + b * r.x_batch + t * r.x_token + h * r.x_head + pair;
  const int64_t row = b * r.table_batch + t * r.table_token + pair;
  float first[W], second[W];
  load<W>(head, first);
  load<W>(head + r.half, second);
#pragma unroll
  for (int j = 0; j < W; ++j) {
    const float c = cos_table[row + j], s = r.sign * sin_table[row + j];
    const float turned = first[j] * c - second[j] * s;
    second[j] = second[j] * c + first[j] * s;
    first[j] = turned;
  }
  store<W>(head, first);
  store<W>(head + r.half, second);
}

}  // namespace

void rope_table(const RopeTableArgs& args, Stream& stream) {
  const int64_t half = std::ssize(*args.frequencies), n = args.cos.numel();
  WEFT_CHECK(half <= kMostFrequencies, "heads of ", 2 * half);
  if (n == 0) return;
  Frequencies frequencies{};
  std::copy(args.frequencies->begin(), args.frequencies->end(), frequencies.value);
  visit_element(args.cos.dtype, [&](auto zero) {
    using T = decltype(zero);
    table<T><<<grid_of(ceil_div(n, kThreads)), kThreads, 0, native(stream)>>>(
        elements<T>(args.cos), elements<T>(args.sin), elements<int64_t>(args.positions),
        frequencies, n, static_cast<int>(half));
  });
  WEFT_CALL(cudaGetLastError());
}

void rope(const RopeArgs& args, Stream& stream) {
  const Tensor& x = args.x;
  if (x.numel() == 0) return;
  const int64_t half = x.dim(3) / 2;
  // Both halves of a head start on a pack when half a head is whole packs.
  const bool packs = rows_in_packs(half, {&x});
  visit_element(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_width<T>(packs, [&](auto width) {
      constexpr int W = decltype(width)::value;
      const Rotation r{x.dim(1),
                       x.dim(2),
                       half / W,
                       x.stride[0],
                       x.stride[1],
                       x.stride[2],
                       args.cos.stride[0],
                       args.cos.stride[1],
                       half,
                       args.inverse ? -1.0f : 1.0f};
      const int64_t n = x.numel() / (2 * W);
      rotate<T, W><<<grid_of(ceil_div(n, kThreads)), kThreads, 0, native(stream)>>>(
          elements<T>(x), elements<float>(args.cos), elements<float>(args.sin), r, n);
    });
  });
  WEFT_CALL(cudaGetLastError());
}

}  // namespace weft::cuda
