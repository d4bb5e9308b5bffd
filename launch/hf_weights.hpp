#pragma once

#include <string>

#include "models/model_config.hpp"
#include "parallel/parameter_store.hpp"

namespace weft {

/// Fills the values of the store's parameters, some or all of the model's, from
/// `folder`/model.safetensors, matched by name and shape, converted to the store's type. A missing
/// tensor, a wrong shape or a tensor that no parameter of the model takes is an Error(data) that
/// names it. `stream` carries the values to a GPU.
void load_hf_weights(const std::string& folder, const ModelConfig& model,
                     const ParameterStore& store, Stream& stream);

}  // namespace weft
