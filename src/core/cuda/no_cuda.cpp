// Stands in for stream.cpp, memory.cpp, range.cpp and timer.cpp in a build without CUDA.
#include "src/core/check.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/range.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/core/cuda/timer.hpp"

namespace weft::cuda {
namespace {

[[noreturn]] void refuse() {
  throw Error(ExitCode::usage, "this build has no CUDA; configure with WEFT_CUDA=ON");
}

}  // namespace

bool in_build() {
  return false;
}
int device_count() {
  return 0;
}
std::string device_name(int) {
  refuse();
}
std::unique_ptr<Stream> make_stream(int, int64_t) {
  refuse();
}
std::unique_ptr<Stream> make_transfer_stream(int) {
  refuse();
}
void open_path(int, int) {
  refuse();
}
void free_device(std::byte*) noexcept {}
void free_pinned(std::byte*) noexcept {}
DeviceMemory allocate_device(std::string_view, int64_t) {
  refuse();
}
int64_t bytes_in_use() {
  refuse();
}
int64_t free_bytes(int) {
  refuse();
}
PinnedMemory allocate_pinned(std::string_view, int64_t) {
  refuse();
}
void copy_bytes(void*, const void*, int64_t, Stream&) {
  refuse();
}
void copy_device_bytes(void*, const void*, int64_t, Stream&) {
  refuse();
}
void set_bytes(std::byte*, uint8_t, int64_t, Stream*) {
  refuse();
}
NamedRange::NamedRange(const std::string&) {}
NamedRange::~NamedRange() = default;
double seconds_of(Stream&, const std::function<void()>&) {
  refuse();
}

}  // namespace weft::cuda
