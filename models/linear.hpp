// y = x W^T, the weight as Hugging Face stores it: [out, in].
#pragma once

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

class Linear {
 public:
  /// Of the outputs `out`. `init_std`: of the initial values.
  Linear(std::string name, int64_t in, const Piece& out, double init_std);
  /// Of the inputs `in`: what it gives are partial sums.
  Linear(std::string name, const Piece& in, int64_t out, double init_std);

  // Below, in and out are the rank's own. Inputs and gradients of outputs may have the accumulator
  // type of the weight's: products take them rounded to the weight's own.

  /// y: [R, out], overwritten.
  void forward(const Tensor& y, const Tensor& x, StepContext& ctx) const;

  /// dx: [R, in], overwritten, or added to with `accumulate`.
  void backward_input(const Tensor& dx, const Tensor& dy, StepContext& ctx,
                      bool accumulate = false) const;
  /// Adds to the weight's gradient.
  void backward_weight(const Tensor& dy, const Tensor& x, StepContext& ctx) const;
  /// Both.
  void backward(const Tensor& dx, const Tensor& dy, const Tensor& x, StepContext& ctx,
                bool accumulate = false) const;

  Parameter weight;  // [out, in]
};

/// Of all inputs, whatever a rank has of them: in^-1/2, the default of matrices: keeps the scale of
/// activations whatever the width.
double fan_in_std(int64_t in);
/// The same for projections that write to the residual stream, scaled by (2 layers)^-1/2 so that
/// the stream's variance does not grow with depth.
double output_std(int64_t in, const ModelConfig& config);

}  // namespace weft
