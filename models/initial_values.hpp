#pragma once

#include <cstdint>

#include "parallel/parameter_store.hpp"

namespace weft {

/// Fills the values of all parameters: element i of a parameter depends on (seed, its name, i) and
/// on nothing else, so that any mesh starts from the same model.
void set_initial_values(const ParameterStore& store, uint64_t seed);

}  // namespace weft
