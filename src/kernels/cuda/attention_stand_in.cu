// Around a library's attention: its operands from ours, and its gradients added to ours.
#include "src/kernels/cuda/attention_rows.cuh"
#include "src/kernels/cuda/attention_ways.hpp"

namespace weft::cuda {
namespace {

__global__ void __launch_bounds__(kTileThreads)
    stand_in(bf16* out, float* packed_lse, TokenRows dout, RowNumbers lse, RowNumbers delta,
             RowShape s) {
  const int64_t row = thread_index() / kWarp;
  if (row >= s.rows) return;
  const auto [b, h, t] = Row::of(row, s);
  const bf16* gradient = reinterpret_cast<const bf16*>(dout.data) + dout.at(b, t, h);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  float most = 0;  // so that no square is lost, however small the gradients are
  for (int64_t d = lane; d < s.dim; d += kWarp) most = fmaxf(most, fabsf(to_float(gradient[d])));
  most = warp_reduce(most, Max{});
  const bool none = most < 1e-37f;  // its inverse must be finite
  const float unit = none ? 0 : 1 / most;
  float squares = 0;
  for (int64_t d = lane; d < s.dim; d += kWarp) {
    const float g = to_float(gradient[d]) * unit;
    squares += g * g;
  }
  squares = warp_reduce(squares, Sum{});
  const float factor = none ? 0 : delta.at(b, h, t) * unit / squares;
  bf16* to = out + ((b * s.queries + t) * s.heads + h) * s.dim;
  for (int64_t d = lane; d < s.dim; d += kWarp) {
    to[d] = from_float<bf16>(to_float(gradient[d]) * unit * factor);
  }
  if (lane == 0) {
    const float value = lse.at(b, h, t);
    packed_lse[row] = value == -INFINITY ? INFINITY : value;  // exp(score - lse) is then 0
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
  const RowShape s = RowShape::of(args.dout);
  elements<bf16>(args.dout);  // is bf16
  stand_in<<<s.blocks(), kTileThreads, 0, native(stream)>>>(
      elements<bf16>(args.out), elements<float>(args.packed_lse), TokenRows::of(args.dout),
      RowNumbers::of(args.lse), RowNumbers::of(args.delta), s);
  WEFT_CALL(cudaGetLastError());
  set_lengths<<<1, kWarp, 0, native(stream)>>>(
      elements<int32_t>(args.lengths), static_cast<int>(args.dout.dim(0)),
      static_cast<int>(s.queries), static_cast<int>(args.keys));
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
