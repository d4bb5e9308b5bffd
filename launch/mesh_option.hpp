#pragma once

#include <string>

#include "launch/config.hpp"

namespace weft {

/// Sets config.mesh from "data=1,pipeline=1,sequence=4,tensor=1"; axes that are not named are 1,
/// the rank order stays. Throws Error(config).
void set_mesh(Config& config, const std::string& text);

}  // namespace weft
