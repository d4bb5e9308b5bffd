// Staging: host memory in which the inputs of a step wait for their copy to a GPU.
#pragma once

#include <array>
#include <vector>

#include "src/core/cuda/memory.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Page-locked, with room for the inputs of two whole steps, in turn: the host writes, enqueues the
/// copies and goes on, and what it has written stays as it is until the step after the next begins.
/// So it can be a whole step ahead of the copies. Where inputs are read on the CPU they are written
/// in place and nothing is staged.
class Staging {
 public:
  /// `target`: where inputs are read, cpu or cuda. `capacity` in bytes, of both steps, 0 on the CPU
  /// and where slots are of the meta device, which tells the capacity that a real run needs. Throws
  /// Error(memory) when the memory cannot be had.
  Staging(Device target, int64_t capacity);

  /// Waits for the copies of the step before the last, if they are not done, and takes their memory
  /// back.
  void begin_step();
  /// Where the host writes what `slot`, contiguous, shall hold: a host tensor like it, or `slot`.
  /// Throws Error(memory) past half of the capacity.
  Tensor reserve(const Tensor& slot);
  /// Enqueues the copies to all slots reserved since the last send; the host has written them.
  void send(Stream& stream);

  /// Twice the most bytes that a step has reserved so far.
  int64_t peak() const { return kSteps * largest_; }

 private:
  static constexpr int kSteps = 2;
  struct Copy {
    Tensor to, from;
  };

  Device target_;
  int64_t room_;  // of a step
  cuda::PinnedMemory memory_;
  std::vector<Copy> reserved_;
  std::array<Event, kSteps> sent_;  // the end of a step's copies so far
  int turn_ = 0;                    // whose memory the current step has
  int64_t used_ = 0;
  int64_t largest_ = 0;
};

}  // namespace weft
