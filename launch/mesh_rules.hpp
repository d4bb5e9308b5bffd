// Which meshes can run which models, told before anything is allocated.
#pragma once

#include "launch/config.hpp"

namespace weft {

/// Throws Error(config) with one line that names the rule, the numbers and what would do, where the
/// model, the schedule or the optimizer cannot be spread over the axes of the mesh. An axis that is
/// kAutoSize fits.
void check_mesh(const Config& config);

/// Replaces an axis of kAutoSize by ranks / (product of the others), and checks the mesh. Throws
/// Error(config) when the product of the axes is not `ranks`.
void resolve_mesh(Config& config, int ranks);

}  // namespace weft
