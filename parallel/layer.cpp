#include "parallel/layer.hpp"

#include <algorithm>

namespace weft {

Frame::Frame(Arena& slab, int64_t batch, const Cuts& cuts, int shard, int micro_batch)
    : slab_(slab), batch_(batch), cuts_(cuts), shard_(shard), micro_batch_(micro_batch) {}

Tensor Frame::push(const char* slot, DType dtype, std::initializer_list<int64_t> shape) {
  const Arena::Mark below = slab_.mark();
  const Tensor tensor = slab_.allocate(slot, dtype, shape);
  slots_.push_back({slot, tensor, below});
  return tensor;
}

Tensor Frame::pop(const char* slot) {
  WEFT_CHECK(!slots_.empty() && std::string_view(slots_.back().name) == slot, "pop of '", slot,
             "', the last push was '", slots_.empty() ? "none" : slots_.back().name, "'");
  const Slot top = slots_.back();
  slots_.pop_back();
  slab_.rewind(top.below);
  return top.tensor;
}

Tensor Frame::find(const char* slot) const {
  const auto found = std::find_if(slots_.rbegin(), slots_.rend(),
                                  [&](const Slot& s) { return std::string_view(s.name) == slot; });
  return found == slots_.rend() ? Tensor{} : found->tensor;
}

Tensor Frame::peek(const char* slot) const {
  const Tensor tensor = find(slot);
  WEFT_CHECK(tensor, "no slot '", slot, "'");
  return tensor;
}

}  // namespace weft
