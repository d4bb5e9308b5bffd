#include "src/core/cuda/timer.hpp"

#include "src/core/cuda/cuda_stream.hpp"

namespace weft::cuda {
namespace {

/// Unlike the events of a stream, these keep the time.
using TimedEvent = Handle<cudaEvent_t, cudaEventDestroy>;

TimedEvent record_time(cudaStream_t stream) {
  TimedEvent event;
  WEFT_CALL(cudaEventCreate(event.out()));
  WEFT_CALL(cudaEventRecord(event.get(), stream));
  return event;
}

}  // namespace

double seconds_of(Stream& stream, const std::function<void()>& work) {
  const TimedEvent start = record_time(native(stream));
  work();
  const TimedEvent stop = record_time(native(stream));
  stream.record().wait();
  float milliseconds = 0;
  WEFT_CALL(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
  return milliseconds * 1e-3;
}

}  // namespace weft::cuda
