// What tells whether two runs have ended with the same parameters.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/data/sharded_optimizer.hpp"

namespace weft {

/// The pieces' share of the checksum of a model, which is the sum modulo 2^64 of a hash of (name of
/// the parameter, global index, bits) over all elements: any order and any cut into pieces give the
/// same, and one bit that differs changes it. Bits are those that an update starts from, in bf16
/// the f32 masters'. Waits for `stream`, on which the pieces were written; a GPU's are copied to
/// the host 16 MiB at a time.
uint64_t parameter_checksum(std::span<const OwnedPiece> pieces, Stream& stream);

}  // namespace weft
