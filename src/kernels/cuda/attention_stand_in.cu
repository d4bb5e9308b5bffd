// Around a library's attention: its operands from ours, and its gradients added to ours.
#include "src/kernels/cuda/attention_rows.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

constexpr int kLanes = 8;  // threads of a row

template <int W>
__global__ void __launch_bounds__(kTileThreads)
    stand_in(bf16* out, float* packed_lse, TokenRows dout, RowNumbers lse, RowNumbers delta,
             MemoryOrder s) {
  const unsigned row = (blockIdx.x * kTileThreads + threadIdx.x) / kLanes;
  const bool inside = row < s.rows;  // the others of the warp may be
  const auto [b, h, t] = s.at(inside ? row : 0);
  const float row_delta = delta.at(b, h, t), row_lse = lse.at(b, h, t);
  const bf16* gradient = reinterpret_cast<const bf16*>(dout.data) + dout.at(b, t, h);
  const unsigned lane = threadIdx.x % kLanes;
  const auto for_each_pack = [&](auto&& f) {
    for (unsigned d = lane * W; inside && d < s.dim; d += kLanes * W) {
      float g[W];
      load<W>(gradient + d, g);
      f(d, g);
    }
  };
  float most = 0;  // so that no square is lost, however small the gradients are
  for_each_pack([&](unsigned, const float(&g)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) most = fmaxf(most, fabsf(g[j]));
  });
  most = warp_reduce<kLanes>(most, Max{});
  const bool none = most < 1e-37f;  // its inverse must be finite
  const float unit = none ? 0 : 1 / most;
  float squares = 0;
  for_each_pack([&](unsigned, const float(&g)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) squares += g[j] * unit * (g[j] * unit);
  });
  squares = warp_reduce<kLanes>(squares, Sum{});
  const float factor = none ? 0 : row_delta * unit / squares;
  bf16* to = out + int64_t{row} * s.dim;
  for_each_pack([&](unsigned d, float(&g)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) g[j] = g[j] * unit * factor;
    store<W>(to + d, g);
  });
  if (inside && lane == 0) {  // exp(score - inf) is 0
    packed_lse[(b * s.heads + h) * s.tokens + t] = row_lse == -INFINITY ? INFINITY : row_lse;
  }
}

__global__ void set_lengths(int32_t* lengths, int batch, int queries, int keys) {
  for (int b = threadIdx.x; b < batch; b += blockDim.x) {
    lengths[b] = queries;
    lengths[batch + b] = keys;
  }
}

struct HeadsShape {
  int64_t units, tokens, heads, width;  // `width`: units of a head
};

template <int W>
__global__ void __launch_bounds__(kTileThreads)
    add_units(TokenRows sum, const bf16* term, HeadsShape s) {
  const int64_t i = thread_index();
  if (i >= s.units) return;
  const int64_t row = i / s.width, token = row / s.heads;
  float* to = sum.f32(sum.at(token / s.tokens, token % s.tokens, row % s.heads)) + i % s.width * W;
  float a[W], b[W];
  load<W>(to, a);
  load<W>(term + i * W, b);
#pragma unroll
  for (int j = 0; j < W; ++j) a[j] += b[j];
  store<W>(to, a);
}

}  // namespace

void attention_stand_in(const StandInArgs& args, Stream& stream) {
  const MemoryOrder s = MemoryOrder::of(args.dout);
  elements<bf16>(args.dout);  // is bf16
  with_access(s.dim, {&args.dout, &args.out}, [&](auto width) {
    stand_in<width>
        <<<grid_of(ceil_div(s.rows, kTileThreads / kLanes)), kTileThreads, 0, native(stream)>>>(
            elements<bf16>(args.out), elements<float>(args.packed_lse), TokenRows::of(args.dout),
            RowNumbers::of(args.lse), RowNumbers::of(args.delta), s);
  });
  WEFT_CALL(cudaGetLastError());
  set_lengths<<<1, kWarp, 0, native(stream)>>>(
      elements<int32_t>(args.lengths), static_cast<int>(args.dout.dim(0)),
      static_cast<int>(s.tokens), static_cast<int>(args.keys));
  WEFT_CALL(cudaGetLastError());
}

void add_heads(const Tensor& sum, const Tensor& term, Stream& stream) {
  WEFT_CHECK(same_shape(sum, term) && term.contiguous(), sum.text(), term.text());
  elements<float>(sum);  // is f32
  constexpr int kWide = 4;
  const bool wide = rows_in_packs(sum.dim(3), {&sum}) && sum.dim(3) % kWide == 0;
  const auto launch = [&](auto width) {
    constexpr int W = decltype(width)::value;
    const HeadsShape s{sum.numel() / W, sum.dim(1), sum.dim(2), sum.dim(3) / W};
    add_units<W><<<grid_of(ceil_div(s.units, kTileThreads)), kTileThreads, 0, native(stream)>>>(
        TokenRows::of(sum), elements<bf16>(term), s);
    WEFT_CALL(cudaGetLastError());
  };
  if (wide) {
    launch(std::integral_constant<int, kWide>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

}  // namespace weft::cuda
