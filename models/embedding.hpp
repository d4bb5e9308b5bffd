#pragma once

#include "models/model_config.hpp"
#include "parallel/layer.hpp"

namespace weft {

/// Token embedding: the start of the residual stream.
class Embedding {
 public:
  explicit Embedding(const ModelConfig& config);

  /// Reads the frame's "tokens". Returns [R, C], pushed as "stream".
  Tensor forward(Frame& frame, StepContext& ctx) const;
  /// d: [R, C], the gradient of the result.
  void backward(const Tensor& d, Frame& frame, StepContext& ctx) const;

  Parameter table;  // [vocab, C]
};

}  // namespace weft
