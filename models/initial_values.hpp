#pragma once

#include <cstdint>

#include "parallel/parameter_store.hpp"
#include "src/core/device.hpp"

namespace weft {

/// Fills the values of all parameters: an element of a parameter depends on (seed, its name, its
/// global index) and on nothing else, so that any mesh and any device starts from the same model.
/// They are made on the host; `stream` carries them to a GPU.
void set_initial_values(const ParameterStore& store, uint64_t seed, Stream& stream);

}  // namespace weft
