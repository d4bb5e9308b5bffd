#pragma once

#include "launch/config.hpp"

namespace weft {

/// Prints what a run would be, without memory and without peers: the resolved config, the table of
/// ranks with parameters, predicted peak and bytes of a step, and for rank 0 memory by name, bytes
/// by layer and FLOPs by kernel. `config.mesh` is resolved.
void print_dry_run(const Config& config);

}  // namespace weft
