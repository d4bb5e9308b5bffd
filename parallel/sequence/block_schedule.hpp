// Which rank computes which block of attention in which step: pure functions of the number of ranks
// and of shapes. A block (i, j) is the queries of rank i against the keys of rank j; with a causal
// mask and contiguous shards those of j <= i are not empty.
#pragma once

#include <vector>

namespace weft {

/// What a rank does in one step. It computes one block at most: with its own queries or, helping,
/// with its own keys.
struct BlockStep {
  static constexpr int kNobody = -1;

  int keys_of = kNobody;     // own queries against the keys of this rank
  int keys_to = kNobody;     // who gets our keys for this step
  int queries_of = kNobody;  // helping: the queries of this rank against our keys
  int helped_by = kNobody;   // who gets our queries for this step, and returns what it finds
  bool operator==(const BlockStep&) const = default;
};

/// LightSeq's causal schedule (Li, Shao et al., arXiv 2310.03294, section 3), for any number of
/// ranks. Step 0 is the rank's own block. A late rank computes the blocks (p, p - t) in step t, and
/// the `helped` farthest distances, d > P - 1 - helped, are computed where their keys are: in step
/// t <= helped rank p < t, which has run out of keys before it, takes the queries of p + P - t.
///   helped = (P - 1) / 2   balanced: floor(P / 2) + 1 steps
///   helped = 0             none helps: P steps, the last rank busy in all of them
/// Throws on helped outside [0, (P - 1) / 2].
std::vector<BlockStep> causal_schedule(int ranks, int rank, int helped);

/// Bidirectional attention has no idle rank to help: rank p computes (p, p - t mod P) in step t.
std::vector<BlockStep> full_schedule(int ranks, int rank);

/// What one block costs in a training step, forward and backward together.
struct BlockCost {
  double flops;        // of computing it
  double key_bytes;    // that travel when it is computed at its queries: k, v; dk, dv
  double query_bytes;  // when it is computed at its keys: q, dout, lse, delta; out, lse, dq
};

/// How many distances LightSeq should have helped: the number with the shortest step when a rank
/// computes kFlopsPerByte in the time of a byte, transfers run beside computation, and a step ends
/// with the longer of the two; the more balanced one of equals. Without grouped queries that is
/// (P - 1) / 2; a helper's messages are H / G times as large as keys, so with few kv heads short
/// shards are better off without.
int helped_distances(int ranks, const BlockCost& cost);

/// bf16 matrix products of an H100 (800 TFLOP/s) over its NVLink (400 GB/s a direction).
inline constexpr double kFlopsPerByte = 2000;

}  // namespace weft
