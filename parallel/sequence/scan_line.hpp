// What the state scans are made of: the ranks in the order in which a state passes them, and the
// calls of a schedule on the stream beside compute.
#pragma once

#include <vector>

#include "parallel/sequence/state_scan.hpp"

namespace weft {

/// The map S -> A . S + b of one or of consecutive shards, R = B H.
struct StateMap {
  Tensor transition;  // absent, [R], [R, K] or [R, K, K]
  Tensor state;       // [R, K, V]
};

/// One scan as its schedule sees it. Positions count from the end that nothing enters, so that one
/// schedule serves both directions: position i is rank i of a prefix, rank P - 1 - i of a suffix.
///
/// Kernels and transfers run in order on a stream beside compute. All ranks call exchange() equally
/// often, and a message is sent and received in the same call of both: where every call is compared
/// over the group first (--strict), a rank that is ahead in its schedule waits for all others.
class ScanLine {
 public:
  ScanLine(const ScanElement& element, const Tensor& entering, ScanDirection direction,
           const Tag& tag, StepContext& ctx);

  int size() const { return ranks_.size(); }
  int position() const { return at(ranks_.rank()); }
  /// The rank at a position, or the position of a rank.
  int at(int p) const { return direction_ == ScanDirection::prefix ? p : size() - 1 - p; }

  const StateMap& own() const { return own_; }          // of this rank's shard
  const Tensor& entering() const { return entering_; }  // [R, K, V], to be written

  /// Like those of own(), in the scratch, until finish(); what writes them first does so in the
  /// order of stream(). What a transfer receives into, nothing before it uses
  /// (Communicator::beside).
  Tensor allocate_state(const char* name) const;
  Tensor allocate_transition(const char* name) const;

  Communicator& ranks() const { return ranks_; }
  Stream& stream() const { return stream_; }

  /// Peers are positions. Kernels that follow come after the transfer.
  void exchange(std::vector<Message> messages);

  /// out = transition . entering + local, as the direction applies it; `out` may be `local`.
  void combine(const Tensor& out, const Tensor& transition, const Tensor& entering,
               const Tensor& local) const;
  /// out: the transition of shards that a state passes `earlier` and then `later`; neither of them
  /// where it is dense.
  void compose_transitions(const Tensor& out, const Tensor& later, const Tensor& earlier) const;

  /// The scan once all calls above are made. What enters position 0 is 0, and nobody waits for it.
  PendingScan pending() const;

 private:
  Tensor allocate(const char* name, std::initializer_list<int64_t> shape) const;

  ScanDirection direction_;
  Tag tag_;
  StepContext& ctx_;
  Communicator& ranks_;
  Stream& stream_;
  StateMap own_;
  Tensor entering_;
  Tensor caller_entering_;  // the same, [B, H, K, V]
  Event last_;              // of the exchanges
};

/// A map as messages to or from a position: its state, and its transition if it has one.
void append_send(std::vector<Message>& messages, int position, const StateMap& map);
void append_receive(std::vector<Message>& messages, int position, const StateMap& map);

}  // namespace weft
