#pragma once

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

/// Token embedding: the start of the residual stream. A rank has the rows of its part of the
/// vocabulary; what it makes of all tokens is summed over the tensor axis.
class Embedding {
 public:
  Embedding(const ModelConfig& config, const TensorPlace& place);

  /// Reads the frame's "tokens". Returns the own rows [r, C], pushed as "stream".
  Tensor forward(Frame& frame, StepContext& ctx) const;
  /// d: [r, C], the gradient of the result.
  void backward(const Tensor& d, Frame& frame, StepContext& ctx) const;

  Parameter table;  // [vocab, C]

 private:
  Piece tokens_;  // of the vocabulary
};

}  // namespace weft
