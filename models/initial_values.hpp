#pragma once

#include <cstdint>

#include "parallel/data/parameter_traffic.hpp"
#include "src/core/device.hpp"

namespace weft {

/// Fills parts of parameters: an element of a parameter depends on (seed, its name, its global
/// index) and on nothing else but the type it is rounded to, so that any mesh and any device starts
/// from the same model. They are made on the host; `stream` carries them to a GPU.
void set_initial_values(const std::vector<HeldValues>& parts, uint64_t seed, Stream& stream);

}  // namespace weft
