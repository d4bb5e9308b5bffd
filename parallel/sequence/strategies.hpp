// The tables of sequence strategies: attention, and scans of states. A new one is a file that
// defines its maker and a line in strategies.cpp.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "parallel/sequence/attention_parallel.hpp"
#include "parallel/sequence/state_scan.hpp"

namespace weft {

struct AttentionStrategy {
  const char* name;     // as in sequence.attention
  const char* summary;  // one line for `weft strategies`
  std::unique_ptr<AttentionParallel> (*make)();
  /// Computes for queries of other ranks, and so needs AttentionShard::all_key_begin.
  bool reads_all_intervals = false;
};

std::span<const AttentionStrategy> attention_strategies();

/// The strategy of that name. Throws Error(config).
const AttentionStrategy& attention_strategy(std::string_view name);

/// What decides which strategy "auto" stands for: the shapes of one layer.
struct AttentionSetting {
  int64_t batch;            // B
  Cuts cuts;                // of the sequence
  int64_t heads, kv_heads;  // H, G
  int64_t head_dim;         // D
  DType dtype;
  bool causal;
  int forwards = 1;  // of a step: 2 where backward computes the layer again
};

/// What a strategy sends for one layer, forward and backward, as the recording communicator books
/// it.
struct AttentionTraffic {
  int64_t bytes = 0;  // of all ranks
  int64_t calls = 0;  // communication calls of a rank, one after the other
  auto operator<=>(const AttentionTraffic&) const = default;
};
AttentionTraffic attention_traffic(const AttentionStrategy& strategy,
                                   const AttentionSetting& setting);

/// The strategy that sends the fewest bytes, of those the one with the fewest calls; the first of
/// equals in the table.
const AttentionStrategy& cheapest_strategy(const AttentionSetting& setting);

/// What a scan of states may be told.
struct StateScanOptions {
  int64_t zeco_blocks = 0;  // 0: as many as make the shortest chain
  int group = 0;            // ranks of a group of two_level; 0: about sqrt(P)
};

struct StateScanKind {
  const char* name;     // as in sequence.state
  const char* summary;  // one line for `weft strategies`
  std::unique_ptr<StateScan> (*make)(const StateScanOptions& options);
};

std::span<const StateScanKind> state_scans();

/// The scan of that name. Throws Error(config).
const StateScanKind& state_scan(std::string_view name);

/// What layers of sliding windows always take, whatever sequence.attention says.
std::unique_ptr<AttentionParallel> make_windowed_attention();

// Makers, one a file.
std::unique_ptr<AttentionParallel> make_allgather_attention();
std::unique_ptr<AttentionParallel> make_lightseq_attention();
std::unique_ptr<AttentionParallel> make_ring_attention();
std::unique_ptr<AttentionParallel> make_rsa_attention();
std::unique_ptr<AttentionParallel> make_ulysses_attention();

std::unique_ptr<StateScan> make_lasp_scan(const StateScanOptions& options);
std::unique_ptr<StateScan> make_lasp2_scan(const StateScanOptions& options);
std::unique_ptr<StateScan> make_zeco_scan(const StateScanOptions& options);
std::unique_ptr<StateScan> make_doubling_scan(const StateScanOptions& options);
std::unique_ptr<StateScan> make_two_level_scan(const StateScanOptions& options);

/// LightSeq that helps as far as it can, whatever the messages weigh.
std::unique_ptr<AttentionParallel> make_balanced_lightseq_attention();

}  // namespace weft
