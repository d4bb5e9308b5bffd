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

constexpr StateScanKind kStateScans[] = {
    {"lasp", "the state passes the ranks one after the other", make_lasp_scan},
    {"lasp2", "one all-gather of transitions and states, folded by each rank", make_lasp2_scan},
    {"zeco", "All-Scan: lasp's chain, pipelined in blocks of the state", make_zeco_scan},
    {"doubling", "log2 P rounds of transitions and states over doubling distances",
     make_doubling_scan},
    {"two_level", "maps inside groups of ranks, a chain of states over the groups",
     make_two_level_scan},
};

/// The row of that name. Throws Error(config).
template <class Row>
const Row& row_of(std::span<const Row> table, std::string_view name, const char* key) {
  std::string known;
  for (const Row& row : table) {
    if (name == row.name) return row;
    known += concat(known.empty() ? "" : ", ", row.name);
  }
  throw Error(ExitCode::config,
              concat(key, ": expected one of ", known, ", auto, got '", name, "'"));
}

}  // namespace

std::span<const AttentionStrategy> attention_strategies() {
  return kAttention;
}

const AttentionStrategy& attention_strategy(std::string_view name) {
  return row_of(attention_strategies(), name, "sequence.attention");
}

std::span<const StateScanKind> state_scans() {
  return kStateScans;
}

const StateScanKind& state_scan(std::string_view name) {
  return row_of(state_scans(), name, "sequence.state");
}

}  // namespace weft
