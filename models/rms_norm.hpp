#pragma once

#include "parallel/layer.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

/// RMSNorm of the own rows of the residual stream. Keeps its input by reference: the input must
/// live in the frame until backward. Pushes "rstd".
class RmsNorm {
 public:
  RmsNorm(std::string name, int64_t width, double eps, const TensorPlace& place);

  /// y: [r, C].
  void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) const;
  /// Adds to dx.
  void backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Frame& frame,
                StepContext& ctx) const;

  Parameter weight;  // [C], ones at the start

 private:
  double eps_;
};

}  // namespace weft
