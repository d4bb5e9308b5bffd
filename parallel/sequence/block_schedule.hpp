// Which rank computes which block of attention in which step: pure functions of the number of ranks
// and of shapes. A block (i, j) is the queries of rank i against the keys of rank j; with a causal
// mask and contiguous shards those of j <= i are not empty.
#pragma once

#include <cstdint>
#include <vector>

namespace weft {

/// Queries [begin, end) of a shard.
struct QueryRange {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const QueryRange&) const = default;
};

/// What a rank does in one step. It computes one block at most: with its own queries or, helping,
/// with its own keys.
struct BlockStep {
  static constexpr int kNobody = -1;

  int keys_of = kNobody;     // own queries against the keys of this rank
  int keys_to = kNobody;     // who gets our keys for this step
  int queries_of = kNobody;  // helping: the queries of this rank against our keys
  int helped_by = kNobody;   // who gets our queries for this step, and returns what it finds
  bool shared = false;       // by all ranks: blocks of this step are computed at both ends

  /// Of the queries of a shard of so many tokens, those that its own rank computes in this step,
  /// and those that its helper does: all of them, or of a shared block the first ceil(tokens / 2)
  /// and the others.
  QueryRange kept(int64_t tokens) const { return {0, shared ? first_half(tokens) : tokens}; }
  QueryRange given(int64_t tokens) const { return {shared ? first_half(tokens) : 0, tokens}; }
  bool operator==(const BlockStep&) const = default;

 private:
  static int64_t first_half(int64_t tokens) { return tokens - tokens / 2; }
};

/// LightSeq's causal schedule (Li, Shao et al., arXiv 2310.03294, section 3), for any number of
/// ranks. Step 0 is the rank's own block. A late rank computes the blocks (p, p - t) in step t, and
/// the h = floor(halves / 2) farthest distances, d > P - 1 - h, are computed where their keys are:
/// in step t <= h rank p < t, which has run out of keys before it, takes the queries of p + P - t.
/// Where `halves` is odd the next distance, P - 1 - h in the last step, is shared: rank p keeps
/// half of its queries, and the rank of the keys, idle otherwise, computes the others.
///   halves = P - 1   balanced: floor(P / 2) + 1 steps, the same work on every rank; the paper
///                    leaves half of an even P idle in the last step, halves = P - 2
///   halves = 0       none helps: P steps, the last rank busy in all of them
/// Throws on halves outside [0, P - 1].
std::vector<BlockStep> causal_schedule(int ranks, int rank, int halves);

/// Bidirectional attention has no idle rank to help: rank p computes (p, p - t mod P) in step t.
std::vector<BlockStep> full_schedule(int ranks, int rank);

/// What one block costs in a training step, forward and backward together.
struct BlockCost {
  double flops;        // of computing it
  double key_bytes;    // that travel when it is computed at its queries: k, v; dk, dv
  double query_bytes;  // when it is computed at its keys: q, dout, lse, delta; out, lse, dq
};

/// How many halves of distances LightSeq should have helped: the number with the shortest steps
/// when a rank computes kFlopsPerByte in the time of a byte, transfers run beside computation, and
/// a step ends with the longer of the two; the more balanced one of equals. A helper's messages are
/// H / G times as large as keys, so with few kv heads short shards are better off without. Half
/// help adds messages and saves none: it is worth them where computing is what takes the time.
int helped_halves(int ranks, const BlockCost& cost);

/// bf16 matrix products of an H100 (800 TFLOP/s) over its NVLink (400 GB/s a direction).
inline constexpr double kFlopsPerByte = 2000;

}  // namespace weft
