// Host copies and staging where nothing is on a GPU: in place on the CPU, measured on meta. Results
// that the host reads later.
#include "src/tensor/staging.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <thread>

#include "src/kernels/pointwise.hpp"
#include "src/tensor/host_copy.hpp"
#include "src/tensor/readback.hpp"
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
  // 40 and 800 bytes, each of whole 64, of two steps in a row.
  EXPECT_EQ(staging.peak(), 2 * (64 + 832));
}

// ---- Results of a stream

/// The stream stands still while the host sends all that there is room for.
TEST(Readback, GivesResultsInTheirOrderOnceTheyAreThere) {
  std::promise<void> go;
  Readback results(Device::cpu, 2, /*slots=*/3);
  const Owned result(DType::f64, {2});
  const auto stream = make_worker_stream("results");
  stream->enqueue([wait = go.get_future().share()] { wait.wait(); });
  const auto send = [&](double value) {
    fill({.y = result, .value = value}, *stream);
    results.send(result, *stream);
  };
  for (const double value : {1.0, 2.0, 3.0}) send(value);
  EXPECT_EQ(results.unread(), 3);
  EXPECT_THROW(results.send(result, *stream), Error) << "no slot is free";
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    go.set_value();
  });
  EXPECT_EQ(results.read(), (std::vector<double>{1, 1}));
  EXPECT_EQ(results.waits(), 1);
  later.join();
  send(4);
  for (const double value : {2.0, 3.0, 4.0}) {
    EXPECT_EQ(results.read(), (std::vector<double>{value, value}));
  }
  EXPECT_EQ(results.unread(), 0);
  EXPECT_THROW(results.read(), Error) << "nothing was sent";
}

TEST(Readback, OfASynchronousStreamNeverWaits) {
  Readback results(Device::cpu, 1, /*slots=*/1);
  for (const double value : {5.0, 6.0}) {
    results.send(filled(DType::f64, {1}, value), cpu_stream());
    EXPECT_EQ(results.read(), std::vector<double>{value});
  }
  EXPECT_EQ(results.waits(), 0);
}

TEST(Readback, KnowsWhenTheWorkWasDoneHoweverLateItIsRead) {
  using Clock = Readback::Clock;
  Readback results(Device::cpu, 1, /*slots=*/2);
  const auto stream = make_worker_stream("results");
  const Owned result = filled(DType::f64, {1}, 1);
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < 2; ++i) {
    stream->enqueue([] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); });
    results.send(result, *stream);
  }
  stream->record().wait();
  const Clock::time_point end = Clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  results.read();
  const Clock::time_point first = results.finished();
  results.read();
  EXPECT_GE(first, start + std::chrono::milliseconds(10));
  EXPECT_GE(results.finished(), first + std::chrono::milliseconds(10));
  EXPECT_LE(results.finished(), end);
}

TEST(Readback, RethrowsWhatTheWorkFailedWith) {
  Readback results(Device::cpu, 1, /*slots=*/1);
  const Owned result(DType::f64, {1});
  const auto stream = make_worker_stream("results");
  stream->enqueue([] { throw Error(ExitCode::hang, "a lost peer"); });
  results.send(result, *stream);
  EXPECT_THROW(results.read(), Error);
}

TEST(Readback, OfMetaIsZero) {
  Readback results(Device::meta, 2, /*slots=*/1);
  const int64_t dims[] = {2};
  results.send(Tensor::view(nullptr, DType::f64, Device::meta, dims), *make_meta_stream({}));
  EXPECT_EQ(results.read(), (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace weft
