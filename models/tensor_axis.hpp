// What of a model each rank of the tensor axis has.
#pragma once

#include "models/model_config.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

/// Of the layers with letters *, W and P. Query heads go with their key/value head. With more ranks
/// than key/value heads each of those is held, and computed, by consecutive ranks, which share its
/// query heads.
struct AttentionHeads {
  Piece query, key_value;
};
AttentionHeads attention_heads(const ModelConfig& config, const TensorPlace& place);

/// Throws Error(config), "mesh.tensor: ...", where the model's heads, MLP or vocabulary cannot be
/// cut over so many ranks; it names the nearest numbers that they can be cut over.
void check_tensor_axis(const ModelConfig& config, int tensor);

}  // namespace weft
