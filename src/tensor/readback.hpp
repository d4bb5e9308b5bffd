// Readback: small results of a stream that the host reads while the stream goes on.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "src/core/cuda/memory.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Results in the order in which they were sent, each in a slot of its own until it is read. The
/// slots are of host memory, page-locked where results are on a GPU; they outlive the stream's
/// work.
class Readback {
 public:
  using Clock = std::chrono::steady_clock;

  /// Room for `slots` results of `size` f64 each, which are computed on `device`. Throws
  /// Error(memory) when it cannot be had.
  Readback(Device device, int64_t size, int64_t slots);

  /// Enqueues the copy of `result`, [size] f64: later work may overwrite it. A slot is free.
  void send(const Tensor& result, Stream& stream);
  /// The oldest result that was not read; there is one. Waits where it is not there yet, and
  /// rethrows what the work before it failed with. Of the meta device zeros.
  std::vector<double> read();
  /// When the stream had done the work before the result that was read last, however much later
  /// the host came for it. Not of the meta device.
  Clock::time_point finished() const { return finished_; }

  int64_t unread() const { return sent_ - read_; }
  /// How often read() had to wait so far.
  int64_t waits() const { return waits_; }

 private:
  double* slot(int64_t result) { return memory_ + result % std::ssize(events_) * size_; }

  int64_t size_;
  std::vector<double> on_cpu_;
  cuda::PinnedMemory pinned_;
  double* memory_;                       // one of the two
  std::vector<Event> events_;            // by slot: the end of its copy
  std::vector<Clock::time_point> ends_;  // by slot: when the stream came to it
  Clock::time_point finished_;
  int64_t sent_ = 0, read_ = 0;
  int64_t waits_ = 0;
};

}  // namespace weft
