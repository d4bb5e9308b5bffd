#include "src/core/cuda/stream.hpp"

#include <chrono>
#include <utility>

#include "src/core/cuda/cuda_stream.hpp"

namespace weft::cuda {
namespace {

/// A recorded cudaEvent_t, and what the host work before it threw.
class CudaEvent final : public Event::State {
 public:
  CudaEvent(cudaStream_t stream, std::shared_ptr<const Failure> failure)
      : failure_(std::move(failure)) {
    WEFT_CALL(cudaEventCreateWithFlags(event_.out(), cudaEventDisableTiming));
    WEFT_CALL(cudaEventRecord(event_.get(), stream));
  }

  void wait() override {
    WEFT_CALL(cudaEventSynchronize(event_.get()));
    failure_->rethrow();
  }

  bool ready() override {
    const cudaError_t status = cudaEventQuery(event_.get());
    if (status == cudaErrorNotReady) {
      cudaGetLastError();  // or the next launch would report it
      return false;
    }
    WEFT_CALL(status);
    return true;
  }

  cudaEvent_t get() const { return event_.get(); }

 private:
  Handle<cudaEvent_t, cudaEventDestroy> event_;
  std::shared_ptr<const Failure> failure_;
};

struct HostWork {
  std::function<void()> work;
  std::shared_ptr<Failure> failure;
};

void run_host_work(void* data) {
  const std::unique_ptr<HostWork> job(static_cast<HostWork*>(data));
  try {
    job->work();
  } catch (...) {
    job->failure->set(std::current_exception());
  }
}

}  // namespace

void Failure::set(std::exception_ptr error) {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = std::move(error);
}

void Failure::rethrow() const {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
}

CudaStream::CudaStream(int device, int64_t workspace_bytes) : workspace_bytes_(workspace_bytes) {
  WEFT_CALL(cudaSetDevice(device));
  WEFT_CALL(cudaStreamCreateWithFlags(stream_.out(), cudaStreamNonBlocking));
  workspace_ = allocate_device("workspace of a stream", workspace_bytes);
}

CudaStream::~CudaStream() {
  cudaStreamSynchronize(stream_.get());
}

void CudaStream::enqueue(std::function<void()> work) {
  auto job = std::make_unique<HostWork>(HostWork{std::move(work), failure_});
  WEFT_CALL(cudaLaunchHostFunc(stream_.get(), run_host_work, job.get()));
  static_cast<void>(job.release());  // run_host_work owns it now
}

Event CudaStream::record() {
  return Event(std::make_shared<CudaEvent>(stream_.get(), failure_));
}

void CudaStream::wait(const Event& event) {
  if (const auto* cuda_event = dynamic_cast<const CudaEvent*>(event.state().get())) {
    WEFT_CALL(cudaStreamWaitEvent(stream_.get(), cuda_event->get()));
    return;
  }
  if (event.ready()) return event.wait();  // deliveries and errors still come out
  const auto start = std::chrono::steady_clock::now();
  event.wait();
  waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::byte* CudaStream::workspace(int64_t bytes) const {
  WEFT_REQUIRE(bytes <= workspace_bytes_, ExitCode::memory, "a kernel needs a workspace of ", bytes,
               " bytes, the stream has ", workspace_bytes_);
  return workspace_.get();
}

CudaStream& cuda_stream(Stream& stream) {
  WEFT_CHECK(stream.device() == Device::cuda, "a stream of ", name(stream.device()));
  return static_cast<CudaStream&>(stream);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::unique_ptr<Stream> make_stream(int device, int64_t workspace_bytes) {
  return std::make_unique<CudaStream>(device, workspace_bytes);
}

}  // namespace weft::cuda
