// Streams of a GPU, for files that know no CUDA.
#pragma once

#include <cstdint>
#include <memory>

#include "src/core/device.hpp"

namespace weft::cuda {

/// GPUs this process can use: 0 without a card, without a driver, and in a build without CUDA.
int device_count();

/// Device memory that the kernels of one stream share, one after the other: 32 MiB for a matrix
/// product, the rest for partial sums and sorted tokens.
inline constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

/// A stream of GPU `device`, which becomes the calling thread's GPU. The stream owns its workspace,
/// so two streams never share one. Throws Error(usage) in a build without CUDA.
std::unique_ptr<Stream> make_stream(int device, int64_t workspace_bytes = kWorkspaceBytes);

}  // namespace weft::cuda
