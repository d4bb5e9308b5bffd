// The output of a state mixer on its way to the output projection: RMSNorm, a head or a whole token
// at a time, times a gate.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

enum class GateFunction {
  none,     // 1
  silu,     // RetNet, GLA, Gated DeltaNet ("swish")
  sigmoid,  // Lightning
};

/// y = x rstd weight f(gate), rstd = (mean(x^2) + eps)^-1/2 over each row.
struct GatedNormArgs {
  Tensor y;       // [R, D]
  Tensor rstd;    // out [R], accumulator type; kept for backward
  Tensor x;       // [R, D], accumulator type of y
  Tensor gate;    // [R, D]; absent for none
  Tensor weight;  // [D]
  GateFunction function = GateFunction::none;
  double eps = 1e-5;
};
Cost cost(const GatedNormArgs& args);
void gated_norm_forward(const GatedNormArgs& args, Stream& stream);

struct GatedNormGradArgs {
  Tensor dx;       // out [R, D], type of dy; may be dy
  Tensor dgate;    // out [R, D], type of dy; absent for none; may not be dy
  Tensor dweight;  // [D], accumulates
  Tensor y;        // out [R, D]: the forward's output again, for the next projection's gradient
  Tensor dy;       // [R, D]
  Tensor x;        // [R, D], accumulator type of dy
  Tensor rstd;     // [R]
  Tensor gate;     // as in the forward
  Tensor weight;   // [D]
  GateFunction function = GateFunction::none;
};
Cost cost(const GatedNormGradArgs& args);
void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream);

namespace cpu {
void gated_norm_forward(const GatedNormArgs& args);
void gated_norm_backward(const GatedNormGradArgs& args);
}  // namespace cpu

namespace cuda {
void gated_norm_forward(const GatedNormArgs& args, Stream& stream);
void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
