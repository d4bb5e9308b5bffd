// Virtual time: how a simulation knows when work would be done without doing it.
#pragma once

#include <algorithm>

namespace weft {

/// Seconds of the calling thread. They start at 0 and pass only where a simulation lets them; in a
/// real run they stay there. An Event takes the time of the thread that completes it to every
/// thread that waits for it, so that a thread's time is the longest chain of work before it: the
/// critical path.
class VirtualTime {
 public:
  static double now() { return now_; }
  /// Time never goes back.
  static void reach(double seconds) { now_ = std::max(now_, seconds); }
  static void restart() { now_ = 0; }

 private:
  static inline thread_local double now_ = 0;
};

}  // namespace weft
