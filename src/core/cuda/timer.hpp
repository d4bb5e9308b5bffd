// Time on a GPU, for files that know no CUDA.
#pragma once

#include <functional>

#include "src/core/device.hpp"

namespace weft::cuda {

/// Seconds that the GPU takes for what `work` enqueues on `stream` (a CUDA stream), from the end of
/// everything enqueued before. Waits for it; rethrows what it failed with.
double seconds_of(Stream& stream, const std::function<void()>& work);

}  // namespace weft::cuda
