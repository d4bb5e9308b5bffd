// Staging: host memory in which the inputs of a step wait for their copy to a GPU.
#pragma once

#include <vector>

#include "src/core/cuda/memory.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Page-locked, with room for the inputs of a whole step: the host writes, enqueues the copies and
/// goes on, and what it has written stays as it is until the next step begins. Where inputs are
/// read on the CPU they are written in place and nothing is staged.
class Staging {
 public:
  /// `target`: where inputs are read, cpu or cuda. `capacity` in bytes, 0 on the CPU and where
  /// slots are of the meta device, which tells the capacity that a real run needs. Throws
  /// Error(memory) when the memory cannot be had.
  Staging(Device target, int64_t capacity);

  /// Waits for the copies of the last step, if they are not done, and takes its memory back.
  void begin_step();
  /// Where the host writes what `slot`, contiguous, shall hold: a host tensor like it, or `slot`.
  /// Throws Error(memory) past the capacity.
  Tensor reserve(const Tensor& slot);
  /// Enqueues the copies to all slots reserved since the last send; the host has written them.
  void send(Stream& stream);

  /// The most bytes that a step has reserved so far.
  int64_t peak() const { return peak_; }

 private:
  struct Copy {
    Tensor to, from;
  };

  Device target_;
  int64_t capacity_;
  cuda::PinnedMemory memory_;
  std::vector<Copy> reserved_;
  Event sent_;  // the end of the copies so far
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

}  // namespace weft
