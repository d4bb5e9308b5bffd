// The output of a state mixer on its way to the output projection: RMSNorm, a head or a whole token
// at a time, times a gate. Where a token's heads lie on several ranks a row is a part of what is
// normed: two kernels make the sums over the part, the ranks add them up, and the norm takes them.
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
  // Of rows that are parts:
  Tensor squares = {};  // [R], x's type: sum of x^2 over the whole; absent where rows are whole
  int64_t whole = 0;    // width of the whole, with squares
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
  // Of rows that are parts:
  Tensor along = {};  // [R], x's type: sum of dy weight f(gate) x over the whole
  int64_t whole = 0;  // width of the whole, with along
};
Cost cost(const GatedNormGradArgs& args);
void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream);

/// squares[r] = sum of x[r]^2.
struct RowSquaresArgs {
  Tensor squares;  // [R], overwritten
  Tensor x;        // [R, D], an accumulator type
};
Cost cost(const RowSquaresArgs& args);
void row_squares(const RowSquaresArgs& args, Stream& stream);

/// along[r] = sum of dy weight f(gate) x over row r: what of the gradient points along x.
struct GatedNormAlongArgs {
  Tensor along;   // [R], x's type, overwritten
  Tensor dy;      // [R, D]
  Tensor x;       // [R, D], accumulator type of dy
  Tensor gate;    // as in the forward
  Tensor weight;  // [D]
  GateFunction function = GateFunction::none;
};
Cost cost(const GatedNormAlongArgs& args);
void gated_norm_along(const GatedNormAlongArgs& args, Stream& stream);

namespace cpu {
void gated_norm_forward(const GatedNormArgs& args);
void gated_norm_backward(const GatedNormGradArgs& args);
void row_squares(const RowSquaresArgs& args);
void gated_norm_along(const GatedNormAlongArgs& args);
}  // namespace cpu

namespace cuda {
void gated_norm_forward(const GatedNormArgs& args, Stream& stream);
void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream);
void row_squares(const RowSquaresArgs& args, Stream& stream);
void gated_norm_along(const GatedNormAlongArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
