// Names on the time lines of NVIDIA's profilers (NVTX).
#pragma once

#include <string>

namespace weft::cuda {

/// A stretch of the calling thread's time line, and of what it enqueues, from here to the end of the
/// scope; ranges nest. Nothing where no profiler looks, and in a build without CUDA.
class NamedRange {
 public:
  explicit NamedRange(const std::string& name);
  ~NamedRange();
  NamedRange(const NamedRange&) = delete;
  NamedRange& operator=(const NamedRange&) = delete;
};

}  // namespace weft::cuda
