#pragma once

#include <string>
#include <vector>

#include "models/model_config.hpp"
#include "parallel/data/parameter_traffic.hpp"

namespace weft {

/// Fills parts of parameters, some or all of the model's, from `folder`/model.safetensors, matched
/// by name and shape, converted to the type that a part has: F64, F32 and BF16 of the file are
/// rounded once to f32, or where all parts are f64 not at all, and then to bf16 where a part is.
/// One tensor of the file at a time is in memory. A missing tensor, a wrong shape or a tensor that
/// no parameter of the model takes is an Error(data) that names it. `stream` carries the values to
/// a GPU.
void load_hf_weights(const std::string& folder, const ModelConfig& model,
                     const std::vector<HeldValues>& parts, Stream& stream);

}  // namespace weft
