#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

constexpr AttentionStrategy kAttention[] = {
    {"ring", "keys and values travel round the ring, the next block while the current one computes",
     make_ring_attention},
};

}  // namespace

std::span<const AttentionStrategy> attention_strategies() {
  return kAttention;
}

const AttentionStrategy& attention_strategy(std::string_view name) {
  if (name == "auto") return kAttention[0];
  std::string known;
  for (const AttentionStrategy& strategy : kAttention) {
    if (name == strategy.name) return strategy;
    known += concat(known.empty() ? "" : ", ", strategy.name);
  }
  throw Error(ExitCode::config,
              concat("sequence.attention: expected one of ", known, ", auto, got '", name, "'"));
}

}  // namespace weft
