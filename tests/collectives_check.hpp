// The collectives of any transport on exact integers: shared by ranks that are threads and ranks
// that are MPI processes.
#pragma once

#include "parallel/comm/backend.hpp"

namespace weft {

/// Runs every operation over uneven, empty and even pieces in f32, f64 and i32 where it applies,
/// with poisoned outputs. Throws on the first wrong element or ledger.
void check_collectives(World& world);

}  // namespace weft
