#include "src/kernels/rope.hpp"

#include <cmath>
#include <numbers>

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

double scaled(double frequency, const Llama3Scaling& s) {
  const double turns = s.original_max_position_embeddings * frequency / (2 * std::numbers::pi);
  if (turns < s.low_freq_factor) return frequency / s.factor;
  if (turns > s.high_freq_factor) return frequency;
  const double blend = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - blend) * frequency / s.factor + blend * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const RopeConfig& config, int64_t head_dim) {
  WEFT_CHECK(head_dim > 0 && head_dim % 2 == 0, "head_dim ", head_dim);
  std::vector<double> frequencies(head_dim / 2);
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double plain = std::pow(config.theta, -2.0 * i / head_dim);
    frequencies[i] = config.llama3 ? scaled(plain, *config.llama3) : plain;
  }
  return frequencies;
}

Cost cost(const RopeTableArgs& a) {
  return {3.0 * a.cos.numel(), static_cast<double>(a.positions.nbytes() + 2 * a.cos.nbytes())};
}

void rope_table(const RopeTableArgs& args, Stream& stream) {
  const Tensor& positions = args.positions;
  WEFT_CHECK(positions.ndim == 2 && positions.contiguous() && args.cos.contiguous() &&
             args.sin.contiguous() && same_shape(args.cos, args.sin));
  WEFT_CHECK(args.cos.has_shape({positions.dim(0), positions.dim(1),
                                 static_cast<int64_t>(args.frequencies->size())}),
             args.cos.text());
  WEFT_DISPATCH(rope_table, args, stream);
}

Cost cost(const RopeArgs& a) {
  return {3.0 * a.x.numel(), static_cast<double>(2 * a.x.nbytes() + 2 * a.cos.nbytes())};
}

void rope(const RopeArgs& args, Stream& stream) {
  const Tensor& x = args.x;
  WEFT_CHECK(x.ndim == 4 && args.cos.has_shape({x.dim(0), x.dim(1), x.dim(3) / 2}), x.text(), " ",
             args.cos.text());
  WEFT_CHECK(same_shape(args.cos, args.sin) && args.cos.dtype == accumulator_of(x.dtype),
             args.cos.text());
  WEFT_DISPATCH(rope, args, stream);
}

}  // namespace weft
