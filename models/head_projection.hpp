#pragma once

#include "models/linear.hpp"

namespace weft {

/// A projection whose outputs are the rank's heads, [B, T, heads, D], rotated by their positions
/// where it is rotary. Reads the frame's "cos" and "sin".
class HeadProjection {
 public:
  HeadProjection(std::string name, const ModelConfig& config, const Piece& heads, bool rotary);

  /// heads: overwritten with those of x [R, C].
  void forward(const Tensor& heads, const Tensor& x, const Frame& frame, StepContext& ctx) const;
  /// dheads: of the rotated heads; rotated back in place. dx is overwritten, or added to with
  /// `accumulate`.
  void backward(const Tensor& dx, const Tensor& dheads, const Tensor& x, const Frame& frame,
                StepContext& ctx, bool accumulate = false) const;

  Linear linear;

 private:
  void rotate(const Tensor& heads, bool inverse, const Frame& frame, StepContext& ctx) const;

  bool rotary_;
};

/// [B, T, heads, D] as the rows of a matrix, [B T, heads D].
Tensor flat_heads(const Tensor& heads);

/// Where heads of this width lie in the rows of all heads.
RowPlace place_of(const Piece& heads, int64_t width);

}  // namespace weft
