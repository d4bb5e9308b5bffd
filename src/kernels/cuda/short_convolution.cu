// A thread walks down a strip of one sequence with the last tokens of its channels in registers.
// The backward goes on past the strip until nothing reaches back into it.
#include "src/kernels/short_convolution.hpp"

#include <cmath>

#include "src/kernels/cuda/column_sums.cuh"
#include "src/kernels/cuda/map.cuh"

namespace weft::cuda {
namespace {

constexpr int64_t kStrip = 32;     // tokens
constexpr int kForwardGroup = 4;   // tokens that are loaded before the first is worked on
constexpr int kBackwardGroup = 2;  // it keeps more in registers
constexpr int kFewTaps = 4;  // up to here a thread holds the tokens of 4 channels, past it of one

/// x with what precedes it, as both directions read it.
template <class T>
struct Sequences {
  const T* x;
  const T* before;
  const T* weight;
  const int64_t* positions;
  int64_t batch, tokens, width, before_rows, strips;  // strips: of one sequence
  int taps;

  explicit Sequences(const Tensor& x_, const Tensor& before_, const Tensor& weight_,
                     const Tensor& positions_)
      : x(elements<T>(x_)),
        before(before_ ? elements<T>(before_) : nullptr),
        weight(elements<T>(weight_)),
        positions(elements<int64_t>(positions_)),
        batch(x_.dim(0)),
        tokens(x_.dim(1)),
        width(x_.dim(2)),
        before_rows(before_ ? before_.dim(0) : 0),
        strips(ceil_div(tokens, kStrip)),
        taps(static_cast<int>(weight_.dim(2))) {}

  /// Of token t >= 0 and channel c.
  __device__ int64_t index(int64_t b, int64_t t, int64_t c) const {
    return (b * tokens + t) * width + c;
  }
  /// Of token t < 0 in what precedes the shard.
  __device__ int64_t index_before(int64_t b, int64_t t, int64_t c) const {
    return ((before_rows + t) * batch + b) * width + c;
  }
  /// How many tokens t reads, its own included.
  __device__ int reads(int64_t b, int64_t t) const {
    const int64_t most = positions[b * tokens + t] + 1;
    return most < taps ? static_cast<int>(most) : taps;
  }
};

/// W channels of the last kTaps tokens, and their weights.
template <class T, int kTaps, int W>
struct Window {
  float x[kTaps][W], weight[kTaps][W];  // by distance

  /// As it is before push() of token t.
  __device__ Window(const Sequences<T>& in, int64_t b, int64_t t, int64_t c) {
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        weight[i][j] =
            i < in.taps ? to_float(in.weight[(c + j) * in.taps + in.taps - 1 - i]) : 0.0f;
        x[i][j] = NAN;  // what is not there shows where it is read
      }
      const int64_t from = t - 1 - i;
      if (i + 1 >= in.taps || from < -in.before_rows) continue;
      if (from >= 0) {
        load<W>(in.x + in.index(b, from, c), x[i]);
      } else {
        load<W>(in.before + in.index_before(b, from, c), x[i]);
      }
    }
  }

  __device__ void push(const float (&token)[W]) {
    shift(x);
#pragma unroll
    for (int j = 0; j < W; ++j) x[0][j] = token[j];
  }

  __device__ static void shift(float (&rows)[kTaps][W]) {
#pragma unroll
    for (int i = kTaps - 1; i > 0; --i) {
#pragma unroll
      for (int j = 0; j < W; ++j) rows[i][j] = rows[i - 1][j];
    }
  }

  /// z of the token pushed last, channel j.
  __device__ float convolve(int reads, int j) const {
    float z = 0;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      if (i < reads) z += weight[i][j] * x[i][j];
    }
    return z;
  }
};

template <class T, int kTaps, int W>
struct Forward {
  Sequences<T> in;
  T* y;

  __device__ void operator()(int64_t strip, int64_t c) const {
    constexpr int kGroup = kForwardGroup;
    const int64_t b = strip / in.strips, first = strip % in.strips * kStrip;
    const int64_t end = min(first + kStrip, in.tokens);
    Window<T, kTaps, W> window(in, b, first, c);
    for (int64_t group = first; group < end; group += kGroup) {
      float x[kGroup][W];
      int reads[kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (group + g >= end) continue;
        load<W>(in.x + in.index(b, group + g, c), x[g]);
        reads[g] = in.reads(b, group + g);
      }
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        if (group + g >= end) continue;
        window.push(x[g]);
        float out[W];
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const float z = window.convolve(reads[g], j);
          out[j] = z * sigmoid(z);
        }
        store<W>(y + in.index(b, group + g, c), out);
      }
    }
  }
};

template <class T, int kTaps, int W>
struct Backward {
  Sequences<T> in;
  float* dx;
  float* dbefore;
  const float* dy;

  /// Sums: of dweight, by distance.
  __device__ void operator()(int64_t strip, int64_t c, float (&dweight)[kTaps][W]) const {
    constexpr int kGroup = kBackwardGroup;
    const int64_t b = strip / in.strips, first = strip % in.strips * kStrip;
    const int64_t end = min(first + kStrip, in.tokens);
    const int64_t last = end + kTaps - 1;  // from here on no token reads one of the strip
    Window<T, kTaps, W> window(in, b, first, c);
    float reached[kTaps][W] = {};  // dx of the last tokens, by distance
    for (int64_t group = first; group < last; group += kGroup) {
      float x[kGroup][W], d[kGroup][W];
      int reads[kGroup];
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const int64_t t = group + g;
        if (t >= last || t >= in.tokens) continue;
        load<W>(in.x + in.index(b, t, c), x[g]);
        load<W>(dy + in.index(b, t, c), d[g]);
        reads[g] = in.reads(b, t);
      }
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const int64_t t = group + g;
        if (t >= last) continue;
        Window<T, kTaps, W>::shift(reached);
#pragma unroll
        for (int j = 0; j < W; ++j) reached[0][j] = 0;
        if (t < in.tokens) {
          window.push(x[g]);
          add(window, reads[g], d[g], t < end, reached, dweight);
        }
        write(b, t - (kTaps - 1), c, first, reached[kTaps - 1]);
      }
    }
  }

  /// What the token pushed last sends to those that it reads, and, if it is of the strip, to the
  /// weights.
  __device__ static void add(const Window<T, kTaps, W>& window, int reads, const float (&d)[W],
                             bool of_strip, float (&reached)[kTaps][W],
                             float (&dweight)[kTaps][W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float z = window.convolve(reads, j);
      const float dz = d[j] * silu_slope(z, sigmoid(z));
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        if (i >= reads) continue;
        reached[i][j] += window.weight[i][j] * dz;
        if (of_strip) dweight[i][j] += window.x[i][j] * dz;
      }
    }
  }

  /// dx of token t is complete. Before the strip it is another's, and before the sequence the first
  /// strip's.
  __device__ void write(int64_t b, int64_t t, int64_t c, int64_t first,
                        const float (&complete)[W]) const {
    if (t >= first) {
      store<W>(dx + in.index(b, t, c), complete);
    } else if (first == 0 && t >= -in.before_rows) {
      store<W>(dbefore + in.index_before(b, t, c), complete);
    }
  }
};

/// Calls f with a value of the type of x, how many taps a thread holds, and of how many channels.
template <class F>
void visit_taps(const Tensor& x, int64_t taps, bool packs, F&& f) {
  visit_element(x.dtype, [&](auto zero) {
    using One = std::integral_constant<int, 1>;
    using Few = std::integral_constant<int, kFewTaps>;
    if (taps > kFewTaps) {
      f(zero, std::integral_constant<int, static_cast<int>(kMostTaps)>{}, One{});
    } else {
      with_width<float>(packs, [&](auto width) { f(zero, Few{}, width); });
    }
  });
}

}  // namespace

void short_convolution_forward(const ShortConvolutionArgs& args, Stream& stream) {
  if (args.x.numel() == 0) return;
  const bool packs = rows_in_packs(args.x.dim(2), {&args.y, &args.x, &args.before});
  visit_taps(args.x, args.weight.dim(2), packs, [&](auto zero, auto taps, auto w) {
    using T = decltype(zero);
    constexpr int kTaps = decltype(taps)::value, W = decltype(w)::value;
    const Sequences<T> in(args.x, args.before, args.weight, args.positions);
    const Forward<T, kTaps, W> f{in, elements<T>(args.y)};
    launch_over_rows<W, 0>(in.batch * in.strips, in.width, f, stream);
  });
}

void short_convolution_backward(const ShortConvolutionGradArgs& args, Stream& stream) {
  if (args.x.numel() == 0) {  // no token, or no channel: none reads what is before
    if (args.dbefore) set_bytes(args.dbefore.data, 0, args.dbefore.nbytes(), &stream);
    return;
  }
  const bool packs =
      rows_in_packs(args.x.dim(2), {&args.dx, &args.dy, &args.x, &args.before, &args.dbefore});
  visit_taps(args.x, args.weight.dim(2), packs, [&](auto zero, auto held, auto w) {
    using T = decltype(zero);
    constexpr int kTaps = decltype(held)::value, W = decltype(w)::value;
    const Sequences<T> in(args.x, args.before, args.weight, args.positions);
    const Backward<T, kTaps, W> f{in, elements<float>(args.dx),
                                  args.dbefore ? elements<float>(args.dbefore) : nullptr,
                                  elements<float>(args.dy)};
    ColumnSums sums = launch_over_rows<W, kTaps>(in.batch * in.strips, in.width, f, stream);
    sums.sums = in.taps;
    sums.first = in.taps - 1;
    sums.column_step = in.taps;
    sums.sum_step = -1;
    add_column_sums(args.dweight, sums, stream);
  });
}

}  // namespace weft::cuda
