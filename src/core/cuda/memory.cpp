#include "src/core/cuda/memory.hpp"

#include "src/core/cuda/cuda_stream.hpp"

namespace weft::cuda {
namespace {

using Allocate = cudaError_t (*)(void** memory, size_t bytes);

std::byte* allocate(Allocate allocate, const char* kind, std::string_view owner, int64_t bytes) {
  WEFT_CHECK(bytes >= 0, owner, ": ", bytes, " bytes");
  if (bytes == 0) return nullptr;
  void* memory = nullptr;
  const cudaError_t status = allocate(&memory, static_cast<size_t>(bytes));
  if (status != cudaSuccess) cudaGetLastError();  // or the next launch would report it
  WEFT_REQUIRE(status == cudaSuccess, ExitCode::memory, owner, ": ", bytes, " bytes of ", kind,
               " memory could not be had: ", status_text(status));
  return static_cast<std::byte*>(memory);
}

}  // namespace

void free_device(std::byte* memory) noexcept {
  cudaFree(memory);
}
void free_pinned(std::byte* memory) noexcept {
  cudaFreeHost(memory);
}

DeviceMemory allocate_device(std::string_view owner, int64_t bytes) {
  return DeviceMemory(
      allocate([](void** m, size_t n) { return cudaMalloc(m, n); }, "device", owner, bytes));
}

int64_t bytes_in_use() {
  size_t free = 0, all = 0;
  WEFT_CALL(cudaMemGetInfo(&free, &all));
  return static_cast<int64_t>(all - free);
}

int64_t free_bytes(int device) {
  WEFT_CALL(cudaSetDevice(device));
  size_t free = 0, all = 0;
  WEFT_CALL(cudaMemGetInfo(&free, &all));
  return static_cast<int64_t>(free);
}

PinnedMemory allocate_pinned(std::string_view owner, int64_t bytes) {
  return PinnedMemory(
      allocate([](void** m, size_t n) { return cudaMallocHost(m, n); }, "pinned", owner, bytes));
}

void copy_bytes(void* to, const void* from, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  WEFT_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)));
}

void copy_device_bytes(void* to, const void* from, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  WEFT_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, native(stream)));
}

void set_bytes(std::byte* memory, uint8_t value, int64_t bytes, Stream* stream) {
  if (bytes == 0) return;
  if (stream != nullptr) {
    WEFT_CALL(cudaMemsetAsync(memory, value, bytes, native(*stream)));
    return;
  }
  WEFT_CALL(cudaDeviceSynchronize());  // streams that do not wait for the default one
  WEFT_CALL(cudaMemset(memory, value, bytes));
  WEFT_CALL(cudaDeviceSynchronize());
}

}  // namespace weft::cuda
