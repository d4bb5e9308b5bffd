#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

constexpr AttentionStrategy kAttention[] = {
    {"ring", "keys and values travel round the ring, the next block while the current one computes",
     make_ring_attention},
    {"lightseq", "causal work balanced on contiguous shards: early ranks compute for late ones",
     make_lightseq_attention, /*reads_all_intervals=*/true},
    {"allgather", "keys and values gathered, a kv head at a time; late queries exchanged in pairs",
     make_allgather_attention, /*reads_all_intervals=*/true},
    {"ulysses", "all-to-all between shards of tokens and shards of heads", make_ulysses_attention,
     /*reads_all_intervals=*/true},
    {"rsa", "the first ring: keys travel for whole rows of scores, then values; the baseline",
     make_rsa_attention},
};

}  // namespace

std::span<const AttentionStrategy> attention_strategies() {
  return kAttention;
}

const AttentionStrategy& attention_strategy(std::string_view name) {
  std::string known;
  for (const AttentionStrategy& strategy : kAttention) {
    if (name == strategy.name) return strategy;
    known += concat(known.empty() ? "" : ", ", strategy.name);
  }
  throw Error(ExitCode::config,
              concat("sequence.attention: expected one of ", known, ", auto, got '", name, "'"));
}

}  // namespace weft
