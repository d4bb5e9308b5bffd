#include "parallel/data/unit_slots.hpp"

#include <algorithm>
#include <set>

namespace weft {
namespace {

std::vector<int> units_of(const ParameterStore& store) {
  std::set<int> units;
  for (const ParameterBucket& bucket : store.buckets()) {
    units.insert(bucket.unit);
    if (bucket.second_unit >= 0) units.insert(bucket.second_unit);
  }
  return {units.begin(), units.end()};
}

/// Which slot serves the unit at this place of `units`.
size_t slot_at(int place, size_t units) {
  const bool at_an_end = place == 0 || place + 1 == static_cast<int>(units);
  return at_an_end ? 0 : 1 + (place - 1) % 2;
}

}  // namespace

UnitSlots::UnitSlots(const ParameterStore& store, bool ParameterBucket::*whole, DType dtype,
                     Arena& arena, const char* name)
    : units_(units_of(store)) {
  std::array<int64_t, 3> sizes{};
  for (const int unit : units_) {
    std::vector<Part>& parts = parts_.emplace_back();
    int64_t size = 0;
    for (size_t b = 0; b < store.buckets().size(); ++b) {
      const ParameterBucket& bucket = store.buckets()[b];
      if (bucket.*whole || !bucket.used_by(unit)) continue;
      parts.push_back({static_cast<int>(b), size, size + bucket.size});
      size += bucket.size;
    }
    int64_t& most = sizes[slot_at(place(unit), units_.size())];
    most = std::max(most, size);
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (sizes[i] > 0) slots_[i].memory = arena.allocate(name, dtype, {sizes[i]});
  }
}

const std::vector<UnitSlots::Part>& UnitSlots::parts(int unit) const {
  static const std::vector<Part> none;
  const int at = place(unit);
  return at < 0 ? none : parts_[at];
}

UnitSlots::Slot& UnitSlots::slot(int unit) {
  WEFT_CHECK(place(unit) >= 0, "no unit ", unit);
  return slots_[slot_at(place(unit), units_.size())];
}

bool UnitSlots::holds(int unit) {
  const int held = slot(unit).unit;
  return held >= 0 && parts(held) == parts(unit);
}

int UnitSlots::place(int unit) const {
  const auto found = std::find(units_.begin(), units_.end(), unit);
  return found == units_.end() ? -1 : static_cast<int>(found - units_.begin());
}

}  // namespace weft
