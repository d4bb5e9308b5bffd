// Where the model is cut into the pieces of a pipeline.
#pragma once

#include <span>

#include "src/core/shard.hpp"

namespace weft {

/// Cuts layers of these costs into `pieces` runs of at least one layer each: the largest sum is as
/// small as can be, which is what a full pipeline's time depends on; then the squares of the sums
/// add up to as little as can be; then cuts come as early as can be. Throws Error(config) when
/// there are fewer layers than pieces.
Cuts balanced_pieces(std::span<const double> costs, int pieces);

}  // namespace weft
