#include "src/tensor/arena.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "src/core/cuda/memory.hpp"

namespace weft {
namespace {

constexpr int64_t kAlignment = 64;

#ifdef NDEBUG
std::atomic<bool> poisoning{false};
#else
std::atomic<bool> poisoning{true};
#endif

void set_all_bytes(const Tensor& tensor, uint8_t value, Stream* stream) {
  if (tensor.data == nullptr) return;
  if (tensor.device == Device::cuda) {
    cuda::set_bytes(tensor.data, value, tensor.nbytes(), stream);
  } else {
    std::memset(tensor.data, value, tensor.nbytes());
  }
}

}  // namespace

void set_poison(bool on) {
  poisoning = on;
}
bool poison() {
  return poisoning;
}

void poison_fill(const Tensor& tensor, Stream* stream) {
  WEFT_CHECK(tensor.contiguous(), "poison of a strided view ", tensor.text());
  set_all_bytes(tensor, 0xFF, stream);  // NaN in every floating type, -1 in integers
}

void Arena::Release::operator()(std::byte* slab) const {
  if (device == Device::cuda) {
    cuda::free_device(slab);
  } else {
    munmap(slab, bytes);
  }
}

Arena::Arena(std::string name, Device device, int64_t capacity, Stream* stream)
    : name_(std::move(name)),
      device_(device),
      capacity_(capacity),
      stream_(stream),
      slab_(nullptr, Release{device, capacity}) {
  if (device_ == Device::meta || capacity_ == 0) return;
  if (device_ == Device::cuda) {
    slab_.reset(cuda::allocate_device(concat("arena '", name_, "'"), capacity_).release());
    return;
  }
  void* slab = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  WEFT_REQUIRE(slab != MAP_FAILED, ExitCode::memory, "arena '", name_, "': ", capacity_,
               " bytes could not be had");
  slab_.reset(static_cast<std::byte*>(slab));
}

Tensor Arena::allocate(const char* name, DType dtype, std::initializer_list<int64_t> shape,
                       Stream* user) {
  Tensor t = Tensor::view(nullptr, dtype, device_, {shape.begin(), shape.size()});
  const int64_t bytes = (t.nbytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (device_ != Device::meta) {
    WEFT_REQUIRE(used_ + bytes <= capacity_, ExitCode::memory, "arena '", name_, "': '", name,
                 "' asks for ", bytes, " bytes, ", used_, " of ", capacity_, " are in use");
    t.data = slab_.get() + used_;
    if (poison()) poison_fill(t, user != nullptr ? user : stream_);
  }
  used_ += bytes;
  items_.push_back({name, bytes});
  if (used_ > peak_) {
    peak_ = used_;
    at_peak_ = items_;
  }
  return t;
}

Tensor Arena::allocate_zeros(const char* name, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor t = allocate(name, dtype, shape);
  set_all_bytes(t, 0, stream_);
  return t;
}

void Arena::rewind(const Mark& mark) {
  WEFT_CHECK(mark.items <= items_.size() && mark.used <= used_, "arena '", name_, "'");
  items_.resize(mark.items);
  used_ = mark.used;
}

}  // namespace weft
