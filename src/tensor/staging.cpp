#include "src/tensor/staging.hpp"

#include <algorithm>

namespace weft {

Staging::Staging(Device target, int64_t capacity) : target_(target), room_(capacity / kSteps) {
  if (target_ == Device::cuda && capacity > 0) {
    memory_ = cuda::allocate_pinned("staging of inputs", capacity);
  }
}

void Staging::begin_step() {
  turn_ = (turn_ + 1) % kSteps;
  sent_[turn_].wait();
  sent_[turn_] = {};
  used_ = 0;
}

Tensor Staging::reserve(const Tensor& slot) {
  if (target_ != Device::cuda) return slot;
  WEFT_CHECK(slot.contiguous(), "staging of a strided view ", slot.text());
  constexpr int64_t kAlignment = 64;
  const int64_t begin = used_;
  used_ += (slot.nbytes() + kAlignment - 1) / kAlignment * kAlignment;
  largest_ = std::max(largest_, used_);
  if (slot.device == Device::meta) return slot;
  WEFT_REQUIRE(used_ <= room_, ExitCode::memory, "staging of inputs: ", slot.text(), " asks for ",
               slot.nbytes(), " bytes, ", begin, " of ", room_, " are in use");
  Tensor host = slot;
  host.device = Device::cpu;
  host.data = memory_.get() + turn_ * room_ + begin;
  reserved_.push_back({slot, host});
  return host;
}

void Staging::send(Stream& stream) {
  if (reserved_.empty()) return;
  for (const auto& [to, from] : reserved_) {
    cuda::copy_bytes(to.data, from.data, to.nbytes(), stream);
  }
  reserved_.clear();
  sent_[turn_] = stream.record();
}

}  // namespace weft
