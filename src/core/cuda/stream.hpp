// Streams of a GPU, for files that know no CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "src/core/device.hpp"

namespace weft::cuda {

/// Whether this build has CUDA.
bool in_build();

/// GPUs this process can use: 0 without a card, without a driver, and in a build without CUDA.
int device_count();

/// What the driver calls GPU `device`: "NVIDIA H200".
std::string device_name(int device);

/// Device memory that the kernels of one stream share, one after the other: 32 MiB for a matrix
/// product, the rest for partial sums and sorted tokens.
inline constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

/// A stream of GPU `device`, which becomes the calling thread's GPU, as it does at every call on
/// the stream. The stream owns its workspace, so two streams never share one. Throws Error(usage)
/// in a build without CUDA.
std::unique_ptr<Stream> make_stream(int device, int64_t workspace_bytes = kWorkspaceBytes);

/// A stream for transfers: what is ready on it starts before what is ready on others. No workspace.
std::unique_ptr<Stream> make_transfer_stream(int device);

/// Lets copies on streams of GPU `device` read the memory of GPU `peer` directly, where the two are
/// linked; without a link they go through the host. `device` becomes the calling thread's GPU.
void open_path(int device, int peer);

}  // namespace weft::cuda
