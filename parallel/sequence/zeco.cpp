// All-Scan of ZeCO (Chou et al., arXiv 2507.01004): LASP's chain, pipelined. The state is cut into
// blocks, and a rank passes one on while it receives the next. A rank sends one state and no
// transition, whatever the number of blocks.
//
//   step        0      1      2      3      4      block k reaches position p in step k + p - 1;
//   rank 0    send0  send1  send2                  P - 2 + n steps for n blocks
//   rank 1    recv0  recv1  recv2
//                    send0  send1  send2
//   rank 2           recv0  recv1  recv2
//                           send0  send1  send2
//   rank 3                  recv0  recv1  recv2
#include "parallel/sequence/zeco.hpp"

#include <algorithm>
#include <cmath>

#include "parallel/sequence/scan_line.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/core/shard.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

// Latency and bandwidth of a hop between H100s: 7.8 us fits the published times of All-Scan on 8 to
// 256 of them, 50 GB/s is a 400 Gb/s link.
constexpr double kMessageSeconds = 8e-6;
constexpr double kLinkBytesPerSecond = 50e9;

/// Views of a state [R, K, V] by block.
class Blocks {
 public:
  Blocks(const Tensor& state, int64_t count)
      : blocks_(state_blocks(state.dim(0), state.dim(2), count)),
        cut_(std::ssize(blocks_) > std::max<int64_t>(1, state.dim(0))) {}

  int count() const { return static_cast<int>(blocks_.size()); }
  /// Whether a block is a part of one state's columns, and so not one stretch of memory.
  bool cut() const { return cut_; }

  /// Block k where it is in a state.
  Tensor in_place(const Tensor& state, int k) const {
    return transition_of(state, k).slice(2, blocks_[k].v_begin, blocks_[k].v_end);
  }
  /// Block k as one stretch of memory: where it is if it is one, else in a state's worth of blocks
  /// one after the other.
  Tensor on_the_wire(const Tensor& state, int k) const {
    if (!cut_) return in_place(state, k);
    const auto& [first, last, v_begin, v_end] = blocks_[k];
    const Tensor one = transition_of(state, k).reshape({state.dim(1) * state.dim(2)});
    return one.slice(0, state.dim(1) * v_begin, state.dim(1) * v_end)
        .reshape({last - first, state.dim(1), v_end - v_begin});
  }
  /// What block k's states have of a transition; absent stays absent.
  Tensor transition_of(const Tensor& t, int k) const {
    return t ? t.slice(0, blocks_[k].first, blocks_[k].last) : t;
  }

 private:
  std::vector<StateBlock> blocks_;
  bool cut_;
};

class Zeco final : public StateScan {
 public:
  explicit Zeco(int64_t blocks) : blocks_(blocks) {}

  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    ScanLine line(element, entering, direction, tag, ctx);
    const StateMap& own = line.own();
    const int position = line.position();
    const bool first = position == 0, last = position + 1 == line.size();
    const Blocks blocks(
        own.state, blocks_ > 0 ? blocks_ : shortest_chain_blocks(line.size(), own.state.nbytes()));
    const Tensor incoming =
        blocks.cut() && !first ? line.allocate_state("zeco incoming") : line.entering();
    const Tensor leaving = leaving_state(line, blocks);
    const int steps = line.size() == 1 ? 0 : line.size() - 2 + blocks.count();
    for (int step = 0; step < steps; ++step) {
      const int sent = step - position, received = sent + 1;  // blocks
      const bool sends = !last && sent >= 0 && sent < blocks.count();
      const bool receives = !first && received >= 0 && received < blocks.count();
      std::vector<Message> messages;
      if (sends) messages.push_back(send_to(position + 1, blocks.on_the_wire(leaving, sent)));
      if (receives) {
        messages.push_back(receive_from(position - 1, blocks.on_the_wire(incoming, received)));
      }
      line.exchange(std::move(messages));
      if (receives) take(line, blocks, incoming, leaving, received);
    }
    return line.pending();
  }

 private:
  /// Where the blocks stand that are sent. Nothing enters the first shard, and its own state leaves
  /// it.
  static Tensor leaving_state(const ScanLine& line, const Blocks& blocks) {
    const bool first = line.position() == 0, last = line.position() + 1 == line.size();
    if (last || (first && !blocks.cut())) return line.own().state;
    const Tensor leaving = line.allocate_state("zeco leaving");
    for (int k = 0; first && k < blocks.count(); ++k) {
      copy({.y = blocks.on_the_wire(leaving, k), .x = blocks.in_place(line.own().state, k)},
           line.stream());
    }
    return leaving;
  }

  /// Block k has come in: what leaves of it, and its place in the entering state.
  static void take(const ScanLine& line, const Blocks& blocks, const Tensor& incoming,
                   const Tensor& leaving, int k) {
    const Tensor block = blocks.on_the_wire(incoming, k);
    if (line.position() + 1 < line.size()) {
      line.combine(blocks.on_the_wire(leaving, k), blocks.transition_of(line.own().transition, k),
                   block, blocks.in_place(line.own().state, k));
    }
    if (blocks.cut()) {
      copy({.y = blocks.in_place(line.entering(), k), .x = block}, line.stream());
    }
  }

  int64_t blocks_;  // 0: of the shortest chain
};

}  // namespace

std::vector<StateBlock> state_blocks(int64_t R, int64_t V, int64_t blocks) {
  const int64_t count = std::clamp<int64_t>(blocks, 1, std::max<int64_t>(1, R * V));
  std::vector<StateBlock> out;
  if (count <= std::max<int64_t>(1, R)) {
    const Cuts states = Cuts::even(R, static_cast<int>(count));
    for (int i = 0; i < states.pieces(); ++i) {
      out.push_back({states.begin(i), states.end(i), 0, V});
    }
    return out;
  }
  const Cuts of_state = Cuts::even(count, static_cast<int>(R));  // blocks
  for (int r = 0; r < of_state.pieces(); ++r) {
    const Cuts columns = Cuts::even(V, static_cast<int>(of_state.size(r)));
    for (int i = 0; i < columns.pieces(); ++i) {
      out.push_back({r, r + 1, columns.begin(i), columns.end(i)});
    }
  }
  return out;
}

int64_t shortest_chain_blocks(int ranks, int64_t state_bytes) {
  if (ranks <= 2) return 1;
  const double sent_in_a_latency = kMessageSeconds * kLinkBytesPerSecond;  // bytes
  return std::max<int64_t>(
      1,
      std::llround(std::sqrt((ranks - 2) * static_cast<double>(state_bytes) / sent_in_a_latency)));
}

std::unique_ptr<StateScan> make_zeco_scan(const StateScanOptions& options) {
  return std::make_unique<Zeco>(options.zeco_blocks);
}

}  // namespace weft
