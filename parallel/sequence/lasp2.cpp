// LASP-2 (Sun et al., arXiv 2502.07563): one all-gather of every shard's map, folded by each rank
// for itself in the order in which a state passes the shards, so that the sum is the chain's bit
// for bit. Transitions travel too, and P maps are in memory.
#include "parallel/sequence/scan_line.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// The maps of all ranks, one after the other in one buffer.
class GatheredMaps {
 public:
  GatheredMaps(const ScanLine& line, StepContext& ctx)
      : like_(line.own()),
        stride_(like_.state.numel() + (like_.transition ? like_.transition.numel() : 0)),
        buffer_(ctx.scratch.allocate("lasp2 maps", like_.state.dtype, {line.size() * stride_})) {}

  const Tensor& buffer() const { return buffer_; }
  Cuts cuts(int ranks) const { return Cuts::even(ranks * stride_, ranks); }

  StateMap of_rank(int rank) const {
    const int64_t begin = rank * stride_, middle = begin + like_.state.numel();
    StateMap map{.transition = {}, .state = seen_as(buffer_.slice(0, begin, middle), like_.state)};
    if (like_.transition) {
      map.transition = seen_as(buffer_.slice(0, middle, begin + stride_), like_.transition);
    }
    return map;
  }

 private:
  static Tensor seen_as(const Tensor& flat, const Tensor& like) {
    return Tensor::view(flat.data, like.dtype, flat.device,
                        {like.shape.data(), static_cast<size_t>(like.ndim)});
  }

  StateMap like_;
  int64_t stride_;  // elements of a map
  Tensor buffer_;
};

class Lasp2 final : public StateScan {
 public:
  PendingScan begin(const ScanElement& element, const Tensor& entering, ScanDirection direction,
                    const Tag& tag, StepContext& ctx) override {
    ScanLine line(element, entering, direction, tag, ctx);
    const GatheredMaps maps(line, ctx);
    const StateMap own = maps.of_rank(line.ranks().rank());
    copy({.y = own.state, .x = line.own().state}, ctx.compute);
    if (own.transition) copy({.y = own.transition, .x = line.own().transition}, ctx.compute);
    line.stream().wait(
        line.ranks().all_gather(maps.buffer(), maps.cuts(line.size()), tag, ctx.compute));
    fold(line, maps);
    return line.pending();
  }

 private:
  static void fold(const ScanLine& line, const GatheredMaps& maps) {
    if (line.position() == 0) return;
    Tensor sum = maps.of_rank(line.at(0)).state;
    for (int i = 1; i < line.position(); ++i) {
      const StateMap map = maps.of_rank(line.at(i));
      line.combine(map.state, map.transition, sum, map.state);
      sum = map.state;
    }
    copy({.y = line.entering(), .x = sum}, line.stream());
  }
};

}  // namespace

std::unique_ptr<StateScan> make_lasp2_scan(const StateScanOptions&) {
  return std::make_unique<Lasp2>();
}

}  // namespace weft
