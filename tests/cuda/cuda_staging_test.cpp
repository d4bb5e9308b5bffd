// Host memory on its way to a GPU and back.
#include <future>
#include <thread>

#include "src/tensor/host_copy.hpp"
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

/// The GPU stands still while the host stages a whole step and asks for the next.
TEST_F(HostMemory, StaysStagedUntilItIsCopied) {
  const OnDevice a(DType::i64, {1000}), b(DType::i64, {1000}), c(DType::i64, {1000});
  const auto stream = cuda::make_stream(0);
  std::promise<void> go;
  stream->enqueue([&, wait = go.get_future().share()] { wait.wait(); });

  Staging staging(Device::cuda, 2 * 8000);  // two slots, both of whole 64 bytes
  const auto stage = [&](const OnDevice& slot, int64_t value) {
    const Tensor host = staging.reserve(slot);
    std::fill_n(host.as<int64_t>(), host.numel(), value);
    staging.send(*stream);
  };
  staging.begin_step();
  stage(a, 1);
  stage(b, 2);
  EXPECT_THROW(staging.reserve(c), Error) << "a step of three slots where there is room for two";
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    go.set_value();
  });
  staging.begin_step();  // waits
  stage(c, 3);
  stream->record().wait();
  later.join();
  EXPECT_EQ(device_values(a), Values(1000, 1.0));
  EXPECT_EQ(device_values(b), Values(1000, 2.0));
  EXPECT_EQ(device_values(c), Values(1000, 3.0));
  EXPECT_EQ(staging.peak(), 3 * 8000);  // of the step that was refused
}

}  // namespace
}  // namespace weft
