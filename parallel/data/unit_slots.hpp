// Memory in which whole buckets of a few units lie at a time, the others being in pieces.
#pragma once

#include <array>
#include <vector>

#include "parallel/parameter_store.hpp"

namespace weft {

/// Three slots for all units of a rank: the first and the last unit (the embedding and the head,
/// which are as large as the vocabulary) share one, those between alternate in the two others. A
/// slot is as large as the largest unit that it serves, and keeps what it holds until another unit
/// needs it.
class UnitSlots {
 public:
  /// What a slot holds.
  struct Slot {
    Tensor memory;
    int unit = -1;  // -1: nothing
    bool open = false;
    std::vector<Event> events;  // of transfers that nobody has waited for
  };
  /// A bucket of a unit, and where it lies in the unit's slot.
  struct Part {
    int bucket;
    int64_t begin, end;
    bool operator==(const Part&) const = default;
  };

  /// For the buckets of `store` that are not whole, as `whole` says. Slots come from `arena` under
  /// `name`, a literal.
  UnitSlots(const ParameterStore& store, bool ParameterBucket::*whole, DType dtype, Arena& arena,
            const char* name);

  /// Of a unit; none where all its buckets are whole, or there is no such unit.
  const std::vector<Part>& parts(int unit) const;
  Slot& slot(int unit);
  Tensor memory(int unit, const Part& part) {
    return slot(unit).memory.slice(0, part.begin, part.end);
  }
  /// Whether the slot of the unit has the unit's buckets; perhaps for another unit of the same.
  bool holds(int unit);
  std::array<Slot, 3>& slots() { return slots_; }
  /// All units that use parameters of this rank, in the order of a forward.
  const std::vector<int>& units() const { return units_; }

 private:
  int place(int unit) const;  // in units_

  std::vector<int> units_;
  std::vector<std::vector<Part>> parts_;  // as units_
  std::array<Slot, 3> slots_;
};

}  // namespace weft
