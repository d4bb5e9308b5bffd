#include "src/kernels/short_convolution.hpp"

#include <algorithm>

#include "src/kernels/cpu/vector_math.hpp"

namespace weft::cpu {
namespace {

constexpr int64_t kLane = 32;  // channels that are computed together

/// Some channels of one sequence: every array is [..., kLane], channels past the last are 0.
template <class T>
class Channels {
 public:
  Channels(const Tensor& x, const Tensor& before, const Tensor& weight, const Tensor& positions,
           int64_t b, int64_t first)
      : taps_(weight.dim(2)),
        width_(std::min(kLane, x.dim(2) - first)),
        x_(x.as<T>() + b * x.stride[0] + first),
        step_(x.dim(2)),
        before_rows_(before ? before.dim(0) : 0),
        before_(before ? before.as<T>() + b * before.stride[1] + first : nullptr),
        before_step_(before ? before.stride[0] : 0),
        positions_(positions.as<int64_t>() + b * positions.stride[0]) {
    for (int64_t i = 0; i < taps_; ++i) {
      for (int64_t c = 0; c < width_; ++c) {
        weight_[i][c] = weight.as<T>()[(first + c) * taps_ + taps_ - 1 - i];
      }
    }
  }

  int64_t width() const { return width_; }
  /// How many tokens t reads, its own included.
  int64_t reads(int64_t t) const { return std::min(taps_, positions_[t] + 1); }
  const T* weight(int64_t i) const { return weight_[i]; }

  const T* token(int64_t t) const {
    WEFT_CHECK(t >= -before_rows_, "token ", t, " before the shard is not there");
    return t >= 0 ? x_ + t * step_ : before_ + (before_rows_ + t) * before_step_;
  }

  /// z of token t.
  void convolve(int64_t t, T* z) const {
    std::fill_n(z, kLane, T(0));
    for (int64_t i = 0; i < reads(t); ++i) {
      const T* x = token(t - i);
      for (int64_t c = 0; c < width_; ++c) z[c] += weight_[i][c] * x[c];
    }
  }

 private:
  int64_t taps_, width_;
  const T* x_;
  int64_t step_, before_rows_;
  const T* before_;
  int64_t before_step_;
  const int64_t* positions_;
  T weight_[kMostTaps][kLane] = {};  // by distance
};

/// Calls f(b, first channel) for every block of channels of every sequence.
template <class F>
void for_each_block(const Tensor& x, F&& f) {
  for (int64_t b = 0; b < x.dim(0); ++b) {
    for (int64_t first = 0; first < x.dim(2); first += kLane) f(b, first);
  }
}

/// Where gradients of one block go.
template <class T>
struct ChannelGradients {
  T* dx;
  int64_t step, before_rows;
  T* dbefore;
  int64_t before_step;

  ChannelGradients(const ShortConvolutionGradArgs& args, int64_t b, int64_t first)
      : dx(args.dx.as<T>() + b * args.dx.stride[0] + first),
        step(args.dx.dim(2)),
        before_rows(args.dbefore ? args.dbefore.dim(0) : 0),
        dbefore(args.dbefore ? args.dbefore.as<T>() + b * args.dbefore.stride[1] + first : nullptr),
        before_step(args.dbefore ? args.dbefore.stride[0] : 0) {}
  T* token(int64_t t) const {
    return t >= 0 ? dx + t * step : dbefore + (before_rows + t) * before_step;
  }
};

template <class T>
void backward_block(const ShortConvolutionGradArgs& args, int64_t b, int64_t first) {
  const Channels<T> channels(args.x, args.before, args.weight, args.positions, b, first);
  const ChannelGradients<T> gradients(args, b, first);
  const int64_t width = channels.width(), taps = args.weight.dim(2), T_ = args.x.dim(1);
  // Sums over a long sequence are kept in f64: single terms are lost in a large f32 sum.
  double dweight[kMostTaps][kLane] = {};
  T z[kLane], dz[kLane];
  for (int64_t t = -gradients.before_rows; t < T_; ++t) {
    std::fill_n(gradients.token(t), width, T(0));
  }
  for (int64_t t = 0; t < T_; ++t) {
    channels.convolve(t, z);
    const T* dy = args.dy.as<T>() + b * args.dy.stride[0] + t * args.dy.stride[1] + first;
    for (int64_t c = 0; c < width; ++c) {
      const T sigmoid = 1 / (1 + cpu::exp(-z[c]));
      dz[c] = dy[c] * sigmoid * (1 + z[c] * (1 - sigmoid));
    }
    for (int64_t i = 0; i < channels.reads(t); ++i) {
      const T* x = channels.token(t - i);
      T* dx = gradients.token(t - i);
      for (int64_t c = 0; c < width; ++c) {
        dx[c] += channels.weight(i)[c] * dz[c];
        dweight[i][c] += static_cast<double>(x[c] * dz[c]);
      }
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    T* sum = args.dweight.as<T>() + (first + c) * taps;
    for (int64_t i = 0; i < taps; ++i) sum[taps - 1 - i] += static_cast<T>(dweight[i][c]);
  }
}

}  // namespace

void short_convolution_forward(const ShortConvolutionArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_each_block(args.x, [&](int64_t b, int64_t first) {
      const Channels<T> channels(args.x, args.before, args.weight, args.positions, b, first);
      T z[kLane];
      for (int64_t t = 0; t < args.x.dim(1); ++t) {
        channels.convolve(t, z);
        T* y = args.y.as<T>() + b * args.y.stride[0] + t * args.y.stride[1] + first;
        for (int64_t c = 0; c < channels.width(); ++c) y[c] = z[c] / (1 + cpu::exp(-z[c]));
      }
    });
  });
}

void short_convolution_backward(const ShortConvolutionGradArgs& args) {
  visit_float(args.x.dtype, [&](auto zero) {
    for_each_block(
        args.x, [&](int64_t b, int64_t first) { backward_block<decltype(zero)>(args, b, first); });
  });
}

}  // namespace weft::cpu
