// Gates of state mixers: what a projection of the token makes of log alpha and beta. A logarithm
// is formed as one; nothing that a token says is the exponent of a positive power.
#pragma once

#include <vector>

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// log alpha of heads whose decay is not trained.
struct FixedDecayArgs {
  Tensor log_decay;                             // out [H]
  const std::vector<double>* values = nullptr;  // H; outlives the call's execution
};
Cost cost(const FixedDecayArgs& args);
void fixed_decay(const FixedDecayArgs& args, Stream& stream);

/// log alpha = log sigmoid(x + bias) / normalizer (Yang et al., arXiv 2312.06635, section 4.4).
struct SigmoidDecayArgs {
  Tensor log_decay;  // out [R, N], accumulator type of x
  Tensor x;          // [R, N]
  Tensor bias;       // [N]
  double normalizer = 16;
};
Cost cost(const SigmoidDecayArgs& args);
void sigmoid_decay_forward(const SigmoidDecayArgs& args, Stream& stream);

struct SigmoidDecayGradArgs {
  Tensor dx;          // out [R, N], like x
  Tensor dbias;       // [N], accumulates
  Tensor dlog_decay;  // [R, N], accumulator type of x
  Tensor x, bias;     // as in the forward
  double normalizer = 16;
};
Cost cost(const SigmoidDecayGradArgs& args);
void sigmoid_decay_backward(const SigmoidDecayGradArgs& args, Stream& stream);

/// The gates of the gated delta rule (Yang et al., arXiv 2412.06464):
///   log alpha = -exp(a_log) softplus(a + dt_bias),   beta = beta_scale sigmoid(b)
struct DeltaGatesArgs {
  Tensor log_decay, beta;  // out [R, H], accumulator type of a
  Tensor a, b;             // [R, H]
  Tensor a_log, dt_bias;   // [H]
  double beta_scale = 1;   // 2 lets a token turn what its key reads into its negative
};
Cost cost(const DeltaGatesArgs& args);
void delta_gates_forward(const DeltaGatesArgs& args, Stream& stream);

struct DeltaGatesGradArgs {
  Tensor da, db;                // out [R, H], like a
  Tensor da_log, ddt_bias;      // [H], accumulate
  Tensor dlog_decay, dbeta;     // [R, H], accumulator type of a
  Tensor log_decay;             // [R, H], of the forward
  Tensor a, b, a_log, dt_bias;  // as in the forward
  double beta_scale = 1;
};
Cost cost(const DeltaGatesGradArgs& args);
void delta_gates_backward(const DeltaGatesGradArgs& args, Stream& stream);

namespace cpu {
void fixed_decay(const FixedDecayArgs& args);
void sigmoid_decay_forward(const SigmoidDecayArgs& args);
void sigmoid_decay_backward(const SigmoidDecayGradArgs& args);
void delta_gates_forward(const DeltaGatesArgs& args);
void delta_gates_backward(const DeltaGatesGradArgs& args);
}  // namespace cpu

namespace cuda {
void fixed_decay(const FixedDecayArgs& args, Stream& stream);
void sigmoid_decay_forward(const SigmoidDecayArgs& args, Stream& stream);
void sigmoid_decay_backward(const SigmoidDecayGradArgs& args, Stream& stream);
void delta_gates_forward(const DeltaGatesArgs& args, Stream& stream);
void delta_gates_backward(const DeltaGatesGradArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
