// Real tensors of one layer of softmax attention: of the whole sequence on the host, and a rank's
// tokens of them where it computes.
#pragma once

#include <array>
#include <chrono>
#include <memory>

#include "launch/byte_check.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {

/// What enters attention, or comes out of it: [B, tokens, heads, D] each.
using FourTensors = std::array<Tensor, 4>;
inline constexpr std::array<const char*, 4> kAttentionInputs{"q", "k", "v", "dout"};
inline constexpr std::array<const char*, 4> kAttentionResults{"out", "dq", "dk", "dv"};

/// Throws Error(memory), naming `whose`, where host memory has no room for so many bytes more.
void require_host_memory(int64_t bytes, const char* whose);

/// Inputs of the type of data, normal numbers that are a function of the seed and of their place in
/// the whole alone; results, where asked for, of the accumulator type, not initialised.
class WholeAttention {
 public:
  /// Of all tokens of `setting`. Throws Error(memory).
  WholeAttention(const AttentionSetting& setting, uint64_t seed, bool with_results);

  const FourTensors& inputs() const { return inputs_; }
  const FourTensors& results() const { return results_; }

 private:
  Arena memory_;
  FourTensors inputs_, results_;
};

/// The sums over some elements of the squares of a difference and of what it is a difference from.
struct Squares {
  double difference = 0, reference = 0;
};

/// Forward and backward of one rank's shard: each sequence is one document. Tensors and scratch lie
/// in one arena; a pass allocates nothing else.
class RankAttention {
 public:
  /// Collective over `world`, whose ranks are the sequence axis and which may be the recording one:
  /// then `target` is the device that is planned, `bytes` is not looked at, and two passes tell
  /// memory_peak() and booked(). `setting` stays where it is meanwhile.
  RankAttention(const AttentionStrategy& strategy, const AttentionSetting& setting,
                bool deterministic, Device target, World& world, int64_t bytes);

  /// Takes the rank's tokens of the inputs.
  void load(const WholeAttention& whole);
  void forward();
  void backward();

  struct Seconds {
    double forward = 0;  // from the begin of the pair to the end of forward
    double both = 0;
  };
  /// Both passes, from a moment that the ranks reach together until the device has done them. The
  /// ledgers have the bytes of this pair alone.
  Seconds run();

  /// The rank's tokens of the results against those of the whole, tensor by tensor.
  std::array<Squares, 4> compare_with(const WholeAttention& whole);
  /// The results into the whole's: those of a rank that has all tokens.
  void store(const WholeAttention& whole);

  int64_t memory_peak() const { return memory_.peak(); }
  SentBytes booked() const { return booked_.entries(); }
  SentBytes counted() const { return counted_.entries(); }

 private:
  using Clock = std::chrono::steady_clock;

  AttentionShard make_shard(const AttentionStrategy& strategy, bool deterministic);
  void write_intervals(const Tensor& begin, const Tensor& end, int64_t first);

  const AttentionSetting& setting_;
  Ledger booked_, counted_;
  Clock::time_point forward_end_, end_;  // when the stream came to them
  std::unique_ptr<Stream> compute_;
  Arena memory_;
  ProcessMesh mesh_;  // after the arena: when a pass fails, transfers under way end before it
  ParameterStore no_parameters_;
  StepContext context_;
  int64_t first_, tokens_;  // of the sequence, that are here
  FourTensors inputs_, results_;
  Tensor lse_;
  AttentionShard shard_;
  std::unique_ptr<AttentionParallel> attention_;
};

}  // namespace weft
