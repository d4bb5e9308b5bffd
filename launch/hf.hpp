// Models as Hugging Face writes them: the architecture of a config.json.
#pragma once

#include <string>

#include "models/model_config.hpp"

namespace weft {

/// Reads `folder`/config.json of a llama model, in the spelling of transformers 4 (rope_theta,
/// rope_scaling) or 5 (rope_parameters). Throws Error(config) with one line that names the file and
/// the key for whatever we would compute differently.
ModelConfig read_hf_config(const std::string& folder);

}  // namespace weft
