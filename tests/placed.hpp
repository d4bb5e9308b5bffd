// Tensors where a rank computes, filled from the host and read back.
#pragma once

#include <utility>

#include "src/core/cuda/memory.hpp"
#include "tests/testing.hpp"

namespace weft {

/// A tensor of the host, and its twin in the memory of `stream`'s GPU; on the CPU the two are one.
class Placed {
 public:
  Placed(Owned host, Stream& stream) : host_(std::move(host)), view_(host_.view()) {
    if (stream.device() != Device::cuda) return;
    memory_ = cuda::allocate_device("a test", view_.nbytes());
    view_.data = memory_.get();
    view_.device = Device::cuda;
    cuda::copy_bytes(view_.data, host_.view().data, view_.nbytes(), stream);
  }

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

  /// The host's tensor with what the work enqueued on `stream` so far leaves.
  const Tensor& on_host(Stream& stream) const {
    if (view_.device == Device::cuda) {
      cuda::copy_bytes(host_.view().data, view_.data, view_.nbytes(), stream);
      stream.record().wait();
    }
    return host_;
  }

 private:
  Owned host_;
  cuda::DeviceMemory memory_;
  Tensor view_;
};

}  // namespace weft
