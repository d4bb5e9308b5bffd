// What one kernel call costs: the unit of the meta device, of MFU and of rooflines.
#pragma once

namespace weft {

/// Floating-point operations (a multiply-add is two) and the fewest bytes the call must move: every
/// input read once, every output written once (read too where it accumulates).
struct Cost {
  double flops = 0;
  double bytes = 0;

  Cost& operator+=(const Cost& other) {
    flops += other.flops;
    bytes += other.bytes;
    return *this;
  }
};

}  // namespace weft
