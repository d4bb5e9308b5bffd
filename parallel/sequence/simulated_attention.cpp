#include "parallel/sequence/simulated_attention.hpp"

#include "parallel/sequence/attention_on_shapes.hpp"

namespace weft {

SimulatedProgram attention_program(const AttentionStrategy& strategy,
                                   const AttentionSetting& setting) {
  return {.ranks = setting.cuts.pieces(),
          .run = [strategy, setting](const SimulatedRank& rank, Ledgers ledgers,
                                     const std::function<void()>& forward_ended) {
            AttentionOnShapes attention(strategy, setting, rank.world, rank.compute, ledgers);
            attention.forward();
            forward_ended();
            attention.backward();
          }};
}

}  // namespace weft
