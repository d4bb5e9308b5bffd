#include "parallel/layer.hpp"

#include <algorithm>

namespace weft {

Frame::Frame(Arena& slab, int64_t batch, const Cuts& cuts, int shard, int micro_batch,
             Recompute recompute)
    : slab_(slab),
      batch_(batch),
      cuts_(cuts),
      shard_(shard),
      micro_batch_(micro_batch),
      recompute_(recompute) {}

Tensor Frame::push(const char* slot, DType dtype, std::initializer_list<int64_t> shape,
                   Recompute kept_under) {
  const bool kept = open_ == 0 || recompute_ <= kept_under;
  if (kept && again_) {
    slots_.push_back(take_held(slot));
  } else if (kept) {
    const Arena::Mark below = slab_.mark();
    slots_.push_back({slot, slab_.allocate(slot, dtype, shape), below, {}, open_, kept});
  } else {
    check_scratch();
    const Tensor tensor = scratch_->allocate(slot, dtype, shape);
    slots_.push_back({slot, tensor, {}, scratch_->mark(), open_, kept});
  }
  return slots_.back().tensor;
}

Tensor Frame::pop(const char* slot) {
  WEFT_CHECK(!slots_.empty() && std::string_view(slots_.back().name) == slot, "pop of '", slot,
             "', the last push was '", slots_.empty() ? "none" : slots_.back().name, "'");
  const Slot top = slots_.back();
  slots_.pop_back();
  if (top.kept) slab_.rewind(top.below);
  return top.tensor;
}

Tensor Frame::peek(const char* slot) const {
  const Slot* found = latest(slot);
  WEFT_CHECK(found, "no slot '", slot, "'");
  return found->tensor;
}

Tensor Frame::find(const char* slot) const {
  const Slot* found = latest(slot);
  return found ? found->tensor : Tensor{};
}

bool Frame::present(const char* slot) const {
  const Slot* found = latest(slot);
  return found && found->present;
}

void Frame::open_layer(Arena& scratch) {
  open(++layers_, scratch);
}

bool Frame::reopen_layer(Arena& scratch) {
  WEFT_CHECK(!slots_.empty() && slots_.back().layer != 0, "no layer to reopen");
  open(slots_.back().layer, scratch);
  if (recompute_ == Recompute::none) return false;
  again_ = true;
  for (; !slots_.empty() && slots_.back().layer == open_; slots_.pop_back()) {
    held_.push_back(slots_.back());
  }
  return true;
}

void Frame::close_layer() {
  WEFT_CHECK(open_ != 0 && held_.empty(), "layer ", open_, ", ", held_.size(), " slots are held");
  check_scratch();
  std::erase_if(slots_, [&](const Slot& s) { return !s.kept; });
  scratch_->rewind(before_);
  scratch_ = nullptr;
  open_ = 0;
  again_ = false;
}

void Frame::open(int layer, Arena& scratch) {
  WEFT_CHECK(open_ == 0, "layer ", open_, " is open");
  open_ = layer;
  scratch_ = &scratch;
  before_ = scratch.mark();
}

Frame::Slot Frame::take_held(const char* slot) {
  WEFT_CHECK(!held_.empty() && std::string_view(held_.back().name) == slot, "push of '", slot,
             "', layer ", open_, " kept '", held_.empty() ? "none" : held_.back().name, "' next");
  Slot found = held_.back();
  held_.pop_back();
  found.present = true;
  return found;
}

const Frame::Slot* Frame::latest(const char* slot) const {
  const auto found = std::find_if(slots_.rbegin(), slots_.rend(),
                                  [&](const Slot& s) { return std::string_view(s.name) == slot; });
  return found == slots_.rend() ? nullptr : &*found;
}

Arena::Mark Frame::dropped_end() const {
  const auto last =
      std::find_if(slots_.rbegin(), slots_.rend(), [](const Slot& s) { return !s.kept; });
  return last == slots_.rend() ? before_ : last->above;
}

void Frame::release_popped() {
  check_scratch();
  scratch_->rewind(dropped_end());
}

void Frame::check_scratch() const {
  WEFT_CHECK(scratch_->used() >= dropped_end().used, "the scratch was rewound to ",
             scratch_->used(), " bytes, slots of the open layer reach to ", dropped_end().used);
}

void StepContext::observe(const Frame& frame, std::string_view name, const Tensor& value,
                          const RowPlace& place) const {
  if (!probe) return;
  const int first = value.ndim > 2 ? 2 : 1;  // of the dims of a row
  int64_t width = 1;
  for (int d = first; d < value.ndim; ++d) width *= value.dim(d);
  probe({.name = std::string(name),
         .micro_batch = frame.micro_batch(),
         .value = value,
         .row = place.row,
         .column = place.column,
         .columns = place.columns == 0 ? width : place.columns});
}

}  // namespace weft
