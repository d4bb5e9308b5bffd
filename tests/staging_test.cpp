// Host copies and staging where nothing is on a GPU: in place on the CPU, measured on meta.
#include "src/tensor/staging.hpp"

#include <gtest/gtest.h>

#include "src/tensor/host_copy.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

TEST(HostCopy, OfTheCpuIsTheTensorItself) {
  const Owned x = from_values(DType::f32, {2, 3}, {0, 1, 2, 3, 4, 5});
  EXPECT_EQ(HostCopy(x, cpu_stream()).tensor().data, x.view().data);
  write_on_host(x, cpu_stream(), [&](const Tensor& host) {
    EXPECT_EQ(host.data, x.view().data);
    host.as<float>()[4] = 7;
  });
  EXPECT_EQ(values(x), (std::vector<double>{0, 1, 2, 3, 7, 5}));
}

TEST(Staging, OnTheCpuIsTheSlotItself) {
  const Owned slot(DType::i32, {5});
  Staging staging(Device::cpu, 0);
  staging.begin_step();
  EXPECT_EQ(staging.reserve(slot).data, slot.view().data);
  staging.send(cpu_stream());
  EXPECT_EQ(staging.peak(), 0);
}

TEST(Staging, OfMetaMeasuresTheLargestStep) {
  const auto slot = [](DType dtype, int64_t n) {
    const int64_t dims[] = {n};
    return Tensor::view(nullptr, dtype, Device::meta, dims);
  };
  const auto stream = make_meta_stream({});
  Staging staging(Device::cuda, 0);
  const std::vector<std::vector<int64_t>> steps = {{5, 100}, {1, 1, 0}, {16}};
  for (const std::vector<int64_t>& step : steps) {
    staging.begin_step();
    for (const int64_t n : step) EXPECT_EQ(staging.reserve(slot(DType::i64, n)).numel(), n);
    staging.send(*stream);
  }
  EXPECT_EQ(staging.peak(), 64 + 832);  // 40 and 800 bytes, each of whole 64
}

}  // namespace
}  // namespace weft
