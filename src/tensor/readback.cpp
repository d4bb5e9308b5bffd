#include "src/tensor/readback.hpp"

#include <cstring>
#include <utility>

namespace weft {

Readback::Readback(Device device, int64_t size, int64_t slots)
    : size_(size), events_(slots), ends_(slots) {
  if (device == Device::cuda) {
    const int64_t bytes = slots * size * size_of(DType::f64);
    pinned_ = cuda::allocate_pinned("results on their way to the host", bytes);
    memory_ = reinterpret_cast<double*>(pinned_.get());
  } else {
    on_cpu_.resize(slots * size);
    memory_ = on_cpu_.data();
  }
}

void Readback::send(const Tensor& result, Stream& stream) {
  WEFT_CHECK(result.has_shape({size_}) && result.dtype == DType::f64, result.text());
  WEFT_CHECK(unread() < std::ssize(events_), unread(), " results were not read");
  double* const to = slot(sent_);
  const double* const from = result.as<double>();
  if (stream.device() == Device::cuda) {
    cuda::copy_bytes(to, from, result.nbytes(), stream);
  } else {
    stream.enqueue([to, from, bytes = result.nbytes()] { std::memcpy(to, from, bytes); });
  }
  const int64_t at = sent_++ % std::ssize(events_);
  stream.enqueue([end = &ends_[at]] { *end = Clock::now(); });
  events_[at] = stream.record();
}

std::vector<double> Readback::read() {
  WEFT_CHECK(unread() > 0, "no result is on its way");
  const double* const from = slot(read_);
  const int64_t at = read_++ % std::ssize(events_);
  const Event event = std::exchange(events_[at], {});
  if (!event.ready()) ++waits_;
  event.wait();
  finished_ = ends_[at];
  return {from, from + size_};
}

}  // namespace weft
