#include "src/tensor/arena.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cstring>

namespace weft {
namespace {

constexpr int64_t kAlignment = 64;

#ifdef NDEBUG
std::atomic<bool> poisoning{false};
#else
std::atomic<bool> poisoning{true};
#endif

}  // namespace

void set_poison(bool on) { poisoning = on; }
bool poison() { return poisoning; }

void poison_fill(const Tensor& tensor) {
  if (tensor.data == nullptr) return;
  WEFT_CHECK(tensor.contiguous(), "poison of a strided view ", tensor.text());
  std::memset(tensor.data, 0xFF, tensor.nbytes());  // NaN in every floating type, -1 in integers
}

void Arena::Unmap::operator()(std::byte* slab) const { munmap(slab, bytes); }

Arena::Arena(std::string name, Device device, int64_t capacity)
    : name_(std::move(name)), device_(device), capacity_(capacity), slab_(nullptr, Unmap{capacity}) {
  WEFT_CHECK(device == Device::cpu || device == Device::meta, "no arena on ", weft::name(device));
  if (device_ == Device::meta || capacity_ == 0) return;
  void* slab = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  WEFT_REQUIRE(slab != MAP_FAILED, ExitCode::memory, "arena '", name_, "': ", capacity_,
               " bytes could not be had");
  slab_.reset(static_cast<std::byte*>(slab));
}

Tensor Arena::allocate(const char* name, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t = Tensor::view(nullptr, dtype, device_, {shape.begin(), shape.size()});
  const int64_t bytes = (t.nbytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (device_ != Device::meta) {
    WEFT_REQUIRE(used_ + bytes <= capacity_, ExitCode::memory, "arena '", name_, "': '", name,
                 "' asks for ", bytes, " bytes, ", used_, " of ", capacity_, " are in use");
    t.data = slab_.get() + used_;
    if (poison()) poison_fill(t);
  }
  used_ += bytes;
  items_.push_back({name, bytes});
  if (used_ > peak_) {
    peak_ = used_;
    at_peak_ = items_;
  }
  return t;
}

void Arena::rewind(const Mark& mark) {
  WEFT_CHECK(mark.items <= items_.size() && mark.used <= used_, "arena '", name_, "'");
  items_.resize(mark.items);
  used_ = mark.used;
}

}  // namespace weft
