// Recursive doubling (Hillis and Steele, "Data parallel algorithms", 1986): ceil(log2 P) rounds.
// Before the round of distance d, position i has the map of the shards [i - d + 1, i - 1]. With its
// own shard that is a window of d shards, which it sends to i + d, and the window of i - d is what
// its map lacked:
//
//   position      0      1      2      3      4      what its map is of, after the round
//   d = 1                0      1      2      3
//   d = 2                0     01    012    123
//   d = 4                0     01    012   0123
//
// A window that begins at the first shard is met by no state, so its transition does not travel.
// The sum is bracketed otherwise than the chain's: equal up to rounding, not bit for bit.
#include <utility>

#include "parallel/sequence/scan_line.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

class Doubling final : public StateScan {
 public:
  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    ScanLine line(element, entering, direction, tag, ctx);
    const int position = line.position();
    const StateMap window_buffer = room_for_windows(line);
    StateMap before;  // nothing yet
    for (int distance = 1; distance < line.size(); distance *= 2) {
      const bool sends = position + distance < line.size(), receives = position >= distance;
      const bool whole = position < distance;  // the window begins at the first shard
      std::vector<Message> messages;
      if (sends) {
        StateMap window = window_of(line, before, window_buffer, whole);
        if (whole) window.transition = {};
        append_send(messages, position + distance, window);
      }
      StateMap received;
      if (receives) {
        received = room_for_received(line, distance);
        append_receive(messages, position - distance, received);
      }
      line.exchange(std::move(messages));
      if (receives) before = extended(line, before, received);
    }
    return line.pending();
  }

 private:
  /// The window that ends here, of `before` and the own shard: in the own shard's place where there
  /// is nothing before it.
  static StateMap window_of(const ScanLine& line, const StateMap& before, const StateMap& buffer,
                            bool whole) {
    const StateMap& own = line.own();
    if (!before.state) return own;
    line.combine(buffer.state, own.transition, before.state, own.state);
    if (!whole) line.compose_transitions(buffer.transition, own.transition, before.transition);
    return buffer;
  }

  /// One buffer does for all rounds: a round's kernels come after the transfer of the one before.
  static StateMap room_for_windows(const ScanLine& line) {
    const bool needed = line.position() > 0 && line.position() + 2 < line.size();
    if (!needed) return {};
    return {line.allocate_transition("doubling window transition"),
            line.allocate_state("doubling window")};
  }

  /// The first window becomes the entering state, to which the others are added.
  static StateMap room_for_received(const ScanLine& line, int distance) {
    const bool whole = line.position() - distance < distance;
    return {whole ? Tensor{} : line.allocate_transition("doubling received transition"),
            distance == 1 ? line.entering() : line.allocate_state("doubling received")};
  }

  /// `before` after `received`; without a transition where it reaches the first shard.
  static StateMap extended(const ScanLine& line, const StateMap& before, const StateMap& received) {
    if (!before.state) return received;
    line.combine(before.state, before.transition, received.state, before.state);
    StateMap longer{.transition = {}, .state = before.state};
    if (received.transition) {
      longer.transition = line.allocate_transition("doubling transition");
      line.compose_transitions(longer.transition, before.transition, received.transition);
    }
    return longer;
  }
};

}  // namespace

std::unique_ptr<StateScan> make_doubling_scan(const StateScanOptions&) {
  return std::make_unique<Doubling>();
}

}  // namespace weft
