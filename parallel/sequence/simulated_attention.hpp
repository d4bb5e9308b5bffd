// One layer's attention on simulated ranks: the program of a strategy as it is, on shapes.
#pragma once

#include "parallel/sequence/simulated_layer.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {

/// Over the ranks of `setting.cuts`. There are no documents: what crosses ranks does not depend on
/// them. Running it throws what the strategy throws.
SimulatedProgram attention_program(const AttentionStrategy& strategy,
                                   const AttentionSetting& setting);

}  // namespace weft
