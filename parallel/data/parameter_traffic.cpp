#include "parallel/data/parameter_traffic.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

void wait_all(std::vector<Event>& events, Stream& compute) {
  for (const Event& event : events) compute.wait(event);
  events.clear();
}

}  // namespace

ParameterTraffic::ParameterTraffic(ParameterStore& store, ProcessMesh& mesh, Arena& arena)
    : store_(store),
      values_(store, &ParameterBucket::whole_values, store.dtype(), arena, "parameter slots"),
      gradients_(store, &ParameterBucket::whole_gradients, accumulator_of(store.dtype()), arena,
                 "gradient slots"),
      sums_(store.buckets().size()) {
  make_shards(mesh, arena);
  for (size_t b = 0; b < sums_.size(); ++b) {
    sums_[b].gradients = store.gradients_of(static_cast<int>(b));
  }
}

void ParameterTraffic::make_shards(ProcessMesh& mesh, Arena& arena) {
  int64_t kept_values = 0, kept_gradients = 0;
  bool keeps_values = false, keeps_gradients = false;
  std::map<const Communicator*, int64_t> largest;
  for (const ParameterBucket& bucket : store_.buckets()) {
    Communicator& group = mesh.holders(bucket.holders);
    const Cuts cuts = Cuts::even(bucket.size, group.size());
    const int64_t size = cuts.size(group.rank());
    shards_.push_back({.bucket = &bucket,
                       .group = &group,
                       .cuts = cuts,
                       .at = size_,
                       .value = {},
                       .gradient = {}});
    size_ += size;
    kept_values += bucket.whole_values ? 0 : size;
    kept_gradients += bucket.whole_gradients ? 0 : size;
    keeps_values |= !bucket.whole_values;
    keeps_gradients |= !bucket.whole_gradients;
    if (group.size() > 1) largest[&group] = std::max(largest[&group], size);
  }
  const DType wide = accumulator_of(store_.dtype());
  Tensor values;
  if (keeps_values) values = arena.allocate_zeros("parameters", store_.dtype(), {kept_values});
  if (keeps_gradients) kept_gradients_ = arena.allocate("gradients", wide, {kept_gradients});
  for (const auto& [group, size] : largest) {
    received_[group] = arena.allocate("received gradients", wide, {size});
  }
  int64_t value_at = 0, gradient_at = 0;
  const auto next = [](const Tensor& kept, int64_t& at, int64_t size) {
    at += size;
    return kept.slice(0, at - size, at);
  };
  for (size_t b = 0; b < shards_.size(); ++b) {
    ParameterShard& shard = shards_[b];
    const int bucket = static_cast<int>(b);
    shard.value = shard.bucket->whole_values ? shard.of(store_.values_of(bucket))
                                             : next(values, value_at, shard.size());
    shard.gradient = shard.bucket->whole_gradients
                         ? shard.of(store_.gradients_of(bucket))
                         : next(kept_gradients_, gradient_at, shard.size());
  }
}

// ---- Values

void ParameterTraffic::fetch(int unit, Tag::Pass pass, Stream& compute) {
  if (values_.parts(unit).empty() || values_.holds(unit)) return;
  UnitSlots::Slot& slot = values_.slot(unit);
  WEFT_CHECK(!slot.open, "unit ", unit, " wants the slot of unit ", slot.unit, ", which is open");
  wait_all(slot.events, compute);
  slot.unit = unit;
  if (poison()) poison_fill(slot.memory, &compute);
  for (const UnitSlots::Part& part : values_.parts(unit)) {
    const ParameterShard& shard = shards_[part.bucket];
    const Tensor whole = values_.memory(unit, part);
    copy({.y = shard.of(whole), .x = shard.value}, compute);
    slot.events.push_back(shard.group->all_gather(whole, shard.cuts,
                                                  {-1, Tag::Purpose::parameter, pass, 0}, compute));
  }
}

void ParameterTraffic::fetch_ahead(int unit, int step, Stream& compute) {
  const std::vector<int>& units = values_.units();
  const auto here = std::find(units.begin(), units.end(), unit) - units.begin();
  std::vector<const UnitSlots::Slot*> taken{&values_.slot(unit)};
  for (auto i = here + step; i >= 0 && i < std::ssize(units); i += step) {
    UnitSlots::Slot& slot = values_.slot(units[i]);
    const bool is_taken = std::find(taken.begin(), taken.end(), &slot) != taken.end();
    if (is_taken || slot.open || (step < 0 && !read_backward(units[i]))) return;
    fetch(units[i], step < 0 ? Tag::Pass::backward : Tag::Pass::forward, compute);
    taken.push_back(&slot);
  }
}

bool ParameterTraffic::read_backward(int unit) const {
  for (const UnitSlots::Part& part : values_.parts(unit)) {
    for (const Parameter* p : shards_[part.bucket].bucket->parameters) {
      if (p->read_backward) return true;
    }
  }
  return false;
}

void ParameterTraffic::open_values(int unit, Tag::Pass pass, Stream& compute) {
  if (values_.parts(unit).empty()) return;
  fetch(unit, pass, compute);
  UnitSlots::Slot& slot = values_.slot(unit);
  WEFT_CHECK(!slot.open, "unit ", unit, " is open");
  wait_all(slot.events, compute);
  slot.unit = unit;
  slot.open = true;
  for (const UnitSlots::Part& part : values_.parts(unit)) {
    store_.place_values(part.bucket, values_.memory(unit, part));
  }
}

void ParameterTraffic::close_values(int unit) {
  if (values_.parts(unit).empty()) return;
  UnitSlots::Slot& slot = values_.slot(unit);
  WEFT_CHECK(slot.open && slot.unit == unit, "unit ", unit, " is not open");
  slot.open = false;
  for (const UnitSlots::Part& part : values_.parts(unit)) store_.place_values(part.bucket, {});
}

void ParameterTraffic::begin_forward(int unit, Stream& compute) {
  open_values(unit, Tag::Pass::forward, compute);
  fetch_ahead(unit, 1, compute);
}

void ParameterTraffic::end_forward(int unit) {
  close_values(unit);
}

void ParameterTraffic::begin_backward(int unit, Stream& compute) {
  open_values(unit, Tag::Pass::backward, compute);
  fetch_ahead(unit, -1, compute);
  begin_gradients(unit, compute);
}

void ParameterTraffic::end_backward(int unit, Stream& compute) {
  close_values(unit);
  end_gradients(unit, compute);
}

// ---- Gradients

void ParameterTraffic::begin_step(Stream& compute) {
  fill({.y = store_.gradients(), .value = 0}, compute);
  if (kept_gradients_) fill({.y = kept_gradients_, .value = 0}, compute);
  for (size_t b = 0; b < sums_.size(); ++b) {
    const ParameterBucket& bucket = store_.buckets()[b];
    sums_[b].units_left = 0;
    for (const int unit : gradients_.units()) sums_[b].units_left += bucket.used_by(unit);
    sums_[b].started = false;
  }
}

void ParameterTraffic::begin_gradients(int unit, Stream& compute) {
  if (gradients_.parts(unit).empty()) return;
  UnitSlots::Slot& slot = gradients_.slot(unit);
  WEFT_CHECK(!slot.open, "unit ", unit, " wants the slot of unit ", slot.unit, ", which is open");
  fold(slot, compute);
  slot.unit = unit;
  slot.open = true;
  for (const UnitSlots::Part& part : gradients_.parts(unit)) {
    const Tensor whole = gradients_.memory(unit, part);
    fill({.y = whole, .value = 0}, compute);
    store_.place_gradients(part.bucket, whole);
  }
}

void ParameterTraffic::end_gradients(int unit, Stream& compute) {
  if (gradients_.parts(unit).empty()) return;
  UnitSlots::Slot& slot = gradients_.slot(unit);
  WEFT_CHECK(slot.open && slot.unit == unit, "unit ", unit, " is not open");
  slot.open = false;
  for (const UnitSlots::Part& part : gradients_.parts(unit)) {
    const ParameterShard& shard = shards_[part.bucket];
    store_.place_gradients(part.bucket, {});
    slot.events.push_back(
        shard.group->reduce_scatter(gradients_.memory(unit, part), shard.cuts, received(shard),
                                    {-1, Tag::Purpose::gradient, Tag::Pass::backward, 0}, compute));
  }
}

void ParameterTraffic::fold(UnitSlots::Slot& slot, Stream& compute) {
  if (slot.unit < 0) return;
  wait_all(slot.events, compute);
  for (const UnitSlots::Part& part : gradients_.parts(slot.unit)) {
    const ParameterShard& shard = shards_[part.bucket];
    add({.y = shard.gradient,
         .a = shard.gradient,
         .b = shard.of(slot.memory.slice(0, part.begin, part.end))},
        compute);
  }
  slot.unit = -1;
}

void ParameterTraffic::complete(int unit, Stream& compute) {
  for (size_t b = sums_.size(); b-- > 0;) {
    if (!store_.buckets()[b].whole_gradients || !store_.buckets()[b].used_by(unit)) continue;
    WEFT_CHECK(sums_[b].units_left > 0, "unit ", unit, " had its last gradient before");
    if (--sums_[b].units_left == 0) sum_whole(b, compute);
  }
}

void ParameterTraffic::sum_whole(size_t bucket, Stream& compute) {
  Sum& sum = sums_[bucket];
  sum.started = true;
  store_.place_gradients(static_cast<int>(bucket), {});  // what comes now is late
  const ParameterShard& shard = shards_[bucket];
  sum.event =
      shard.group->reduce_scatter(sum.gradients, shard.cuts, received(shard),
                                  {-1, Tag::Purpose::gradient, Tag::Pass::update, 0}, compute);
}

void ParameterTraffic::finish_gradients(Stream& compute) {
  // A step without a micro-batch completes nothing.
  for (size_t b = sums_.size(); b-- > 0;) {
    if (store_.buckets()[b].whole_gradients && !sums_[b].started) sum_whole(b, compute);
  }
  for (size_t b = 0; b < sums_.size(); ++b) {
    if (!store_.buckets()[b].whole_gradients) continue;
    compute.wait(std::exchange(sums_[b].event, {}));
    store_.place_gradients(static_cast<int>(b), sums_[b].gradients);
  }
  for (UnitSlots::Slot& slot : gradients_.slots()) fold(slot, compute);
}

Tensor ParameterTraffic::received(const ParameterShard& shard) const {
  const auto found = received_.find(shard.group);
  return found == received_.end() ? Tensor{} : found->second;
}

// ---- Update

void ParameterTraffic::publish(const ParameterShard& shard, Stream& compute) {
  if (!shard.bucket->whole_values) return;
  const Tensor whole = store_.values_of(static_cast<int>(&shard - shards_.data()));
  published_.push_back(shard.group->all_gather(
      whole, shard.cuts, {-1, Tag::Purpose::parameter, Tag::Pass::update, 0}, compute));
}

void ParameterTraffic::finish_update(Stream& compute) {
  wait_all(published_, compute);
  for (UnitSlots::Slot& slot : values_.slots()) {
    wait_all(slot.events, compute);
    slot.unit = -1;  // what it holds is of the step before
  }
}

std::vector<HeldValues> ParameterTraffic::held() const {
  std::vector<HeldValues> held;
  for (size_t b = 0; b < shards_.size(); ++b) {
    const ParameterShard& shard = shards_[b];
    const bool whole = shard.bucket->whole_values;
    const Tensor values = whole ? store_.values_of(static_cast<int>(b)) : shard.value;
    const int64_t first = whole ? 0 : shard.begin();
    const int64_t last = whole ? shard.bucket->size : shard.end();
    for (const Parameter* p : shard.bucket->parameters) {
      const int64_t from = std::clamp(p->offset, first, last);
      const int64_t to = std::clamp(p->offset + p->numel(), from, last);
      held.push_back({.parameter = p,
                      .begin = from - p->offset,
                      .end = to - p->offset,
                      .values = values.slice(0, from - first, to - first)});
    }
  }
  return held;
}

}  // namespace weft
