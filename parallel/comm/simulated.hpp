// Simulated time: real programs, real streams and events, on a machine that is four numbers.
// Kernels and transfers last as long as the machine says; nothing is computed and no payload moves,
// so that tensors may be shapes (Device::meta) of any size.
#pragma once

#include <functional>
#include <limits>
#include <vector>

#include "parallel/comm/backend.hpp"
#include "src/core/cost.hpp"
#include "src/core/device.hpp"

namespace weft {

/// One rank's kernels and its link, the same for all ranks. The default costs nothing.
struct SimulatedMachine {
  double flops_per_s = std::numeric_limits<double>::infinity();
  double memory_bytes_per_s = std::numeric_limits<double>::infinity();
  double link_bytes_per_s = std::numeric_limits<double>::infinity();  // each way
  double message_s = 0;  // what a message takes besides its bytes

  /// A kernel: the roofline, the longer of its arithmetic and its memory traffic.
  double kernel_s(const Cost& cost) const;
  /// `messages` of `bytes` altogether, one after the other over one way of the link.
  double transfer_s(int64_t messages, int64_t bytes) const;
  /// The same machine, everything `factor` times as long.
  SimulatedMachine slower(double factor) const;
  /// Kernels alone: transfers take no time; and the reverse.
  SimulatedMachine without_transfers() const;
  SimulatedMachine without_kernels() const;
};

/// How simulated time passes.
enum class SimulatedTime {
  critical_path,  // nothing sleeps: every thread has a VirtualTime. What comes out is the longest
                  // chain of kernels and transfers in the program: what no runtime can beat
  attained        // threads sleep: what this runtime makes of the program, its overhead included
};

/// What the program of one rank is lent.
struct SimulatedRank {
  World& world;
  Stream& compute;  // of the meta device; every kernel call takes its time
  /// Waits for all kernels so far; the seconds since the program's start.
  std::function<double()> now;
};

/// Runs `program` on every rank, each a thread, and returns the seconds at which each rank ended.
///
/// An exchange starts when all its peers have reached theirs, and lasts as long as the longer of
/// what the rank sends and what it receives: a link carries one message at a time each way. All
/// collectives are made of exchanges. The bytes that the transport counts are those that the
/// messages would have carried.
std::vector<double> simulate(int ranks, const SimulatedMachine& machine, SimulatedTime time,
                             const std::function<void(const SimulatedRank&)>& program);

}  // namespace weft
