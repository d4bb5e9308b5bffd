// Host memory on its way to a GPU and back.
#include <chrono>
#include <future>
#include <thread>

#include "src/tensor/host_copy.hpp"
#include "src/tensor/readback.hpp"
#include "src/tensor/staging.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

class HostMemory : public CudaTest {};

TEST_F(HostMemory, GoesToTheGpuAndBack) {
  const OnDevice x(DType::f32, {3, 5});
  Stream& stream = cuda_test_stream();
  write_on_host(x, stream, [](const Tensor& host) {
    EXPECT_EQ(host.device, Device::cpu);
    for (int64_t i = 0; i < host.numel(); ++i) host.as<float>()[i] = static_cast<float>(i * i);
  });
  const HostCopy back(x, stream);
  for (int64_t i = 0; i < 15; ++i) {
    EXPECT_EQ(back.tensor().as<float>()[i], static_cast<float>(i * i)) << i;
  }
}

/// Work of a stream that stands still until go().
class Standstill {
 public:
  explicit Standstill(Stream& stream) {
    stream.enqueue([wait = went_.get_future().share()] { wait.wait(); });
  }
  void go() { went_.set_value(); }

 private:
  std::promise<void> went_;
};

/// The GPU stands still while the host stages two whole steps and asks for a third.
TEST_F(HostMemory, StaysStagedUntilItIsCopied) {
  const OnDevice a(DType::i64, {1000}), b(DType::i64, {1000}), c(DType::i64, {1000});
  const OnDevice d(DType::i64, {1000});
  const auto stream = cuda::make_stream(0);
  Standstill standstill(*stream);

  Staging staging(Device::cuda, 2 * 2 * 8000);  // two slots a step, both of whole 64 bytes
  const auto stage = [&](const OnDevice& slot, int64_t value) {
    const Tensor host = staging.reserve(slot);
    std::fill_n(host.as<int64_t>(), host.numel(), value);
    staging.send(*stream);
  };
  staging.begin_step();
  stage(a, 1);
  stage(b, 2);
  EXPECT_THROW(staging.reserve(c), Error) << "a step of three slots where there is room for two";
  staging.begin_step();  // does not wait
  stage(c, 3);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    standstill.go();
  });
  staging.begin_step();  // waits for the first step's copies
  stage(d, 4);
  stream->record().wait();
  later.join();
  EXPECT_EQ(device_values(a), Values(1000, 1.0));
  EXPECT_EQ(device_values(b), Values(1000, 2.0));
  EXPECT_EQ(device_values(c), Values(1000, 3.0));
  EXPECT_EQ(device_values(d), Values(1000, 4.0));
  EXPECT_EQ(staging.peak(), 2 * 3 * 8000);  // of the step that was refused
}

/// The host overwrites a result behind two copies of it that have not begun.
TEST_F(HostMemory, TakesResultsInTheirOrder) {
  const auto stream = cuda::make_stream(0);
  const OnDevice result(DType::f64, {2}, {1, 2}), next(DType::f64, {2}, {3, 4});
  Readback results(Device::cuda, 2, /*slots=*/2);
  Standstill standstill(*stream);
  results.send(result, *stream);
  cuda::copy_device_bytes(result.view().data, next.view().data, result.view().nbytes(), *stream);
  results.send(result, *stream);
  EXPECT_EQ(results.unread(), 2);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    standstill.go();
  });
  EXPECT_EQ(results.read(), (Values{1, 2}));
  EXPECT_EQ(results.waits(), 1);
  EXPECT_EQ(results.read(), (Values{3, 4}));
  later.join();
}

}  // namespace
}  // namespace weft
