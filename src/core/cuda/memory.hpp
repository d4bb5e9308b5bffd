// Memory of a GPU, and host memory that a GPU can reach. Seen by files that know no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/core/device.hpp"
#include "src/core/handle.hpp"

namespace weft::cuda {

void free_device(std::byte* memory) noexcept;
void free_pinned(std::byte* memory) noexcept;
using DeviceMemory = Handle<std::byte*, free_device>;
using PinnedMemory = Handle<std::byte*, free_pinned>;

/// `bytes` of the calling thread's GPU, aligned to 256. Throws Error(memory), which names `owner`,
/// when they cannot be had.
DeviceMemory allocate_device(std::string_view owner, int64_t bytes);

/// Bytes of the calling thread's GPU that are not free: of all processes, contexts and loaded code
/// included.
int64_t bytes_in_use();

/// Bytes of GPU `device` that are free when this process has its context there. It becomes the
/// calling thread's GPU.
int64_t free_bytes(int device);

/// `bytes` of page-locked host memory: the only kind whose copies run while the host goes on.
PinnedMemory allocate_pinned(std::string_view owner, int64_t bytes);

/// Copies between any two of host and device memory, in the order of `stream` (a CUDA stream).
/// Pageable host memory is read before the call returns; of pinned memory the caller changes
/// nothing before an event recorded after the call.
void copy_bytes(void* to, const void* from, int64_t bytes, Stream& stream);

/// The same between device memory, of one GPU or of two. Addresses that are no device memory are
/// refused.
void copy_device_bytes(void* to, const void* from, int64_t bytes, Stream& stream);

/// Sets every byte of device memory: in the order of `stream`, or, with none, at once and alone on
/// the GPU.
void set_bytes(std::byte* memory, uint8_t value, int64_t bytes, Stream* stream);

}  // namespace weft::cuda
