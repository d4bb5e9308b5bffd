// Streams, events and memory of a GPU.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include "src/kernels/pointwise.hpp"
#include "src/tensor/arena.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

using CudaStreams = CudaTest;

TEST_F(CudaStreams, AnEventOrdersTwoStreams) {
  const auto one = cuda::make_stream(0), two = cuda::make_stream(0);
  const int64_t n = 1 << 24;
  const OnDevice x(DType::f32, {n}), y(DType::f32, {n});
  cuda_test_stream().record().wait();
  for (int round = 0; round < 5; ++round) {
    fill({x, 1.0 + round}, *one);
    two->wait(one->record());
    add({y, x, x}, *two);
    one->wait(two->record());
  }
  two->record().wait();
  EXPECT_EQ(device_values(y.view().slice(0, n - 1, n)), Values{10});
}

TEST_F(CudaStreams, HostWorkKeepsItsPlaceAndHandsOnItsError) {
  const auto stream = cuda::make_stream(0);
  std::vector<int> order;
  stream->enqueue([&] { order.push_back(1); });
  stream->enqueue([&] { order.push_back(2); });
  const Event good = stream->record();
  good.wait();
  EXPECT_EQ(order, (std::vector{1, 2}));
  EXPECT_TRUE(good.ready());
  stream->enqueue([] { throw Error(ExitCode::io, "no disk"); });
  const Event bad = stream->record();
  EXPECT_THROW(bad.wait(), Error);
}

TEST_F(CudaStreams, AnErrorFollowsThoseThatWait) {
  // one -> two -> three, and back: streams that wait for each other
  const auto one = cuda::make_stream(0), two = cuda::make_stream(0), three = cuda::make_stream(0);
  const auto alone = cuda::make_stream(0);
  one->wait(three->record());
  two->wait(one->record());
  three->wait(two->record());
  three->record().wait();
  one->enqueue([] { throw Error(ExitCode::io, "no disk"); });
  EXPECT_THROW(one->record().wait(), Error);
  for (Stream* stream : {two.get(), three.get()}) {
    EXPECT_THROW(stream->record().wait(), Error);
  }
  alone->record().wait();
}

TEST_F(CudaStreams, WaitsForEventsOfTheHost) {
  const auto worker = make_worker_stream("worker");
  const auto stream = cuda::make_stream(0);
  const OnDevice x(DType::f32, {4});
  int done = 0;
  worker->enqueue([&] { done = 1; });
  stream->wait(worker->record());
  EXPECT_EQ(done, 1);
  fill({x, 3.0}, *stream);
  worker->wait(stream->record());  // and the other way round
  Values seen;
  worker->enqueue([&] { seen = device_values(x); });
  worker->record().wait();
  EXPECT_EQ(seen, Values(4, 3.0));
}

TEST_F(CudaStreams, PinnedMemoryComesBack) {
  const int64_t n = 1000;
  const auto pinned = cuda::allocate_pinned("a test", n * 4);
  auto* host = reinterpret_cast<float*>(pinned.get());
  std::iota(host, host + n, 0.0f);
  const OnDevice x(DType::f32, {n});
  cuda::copy_bytes(x.view().data, host, n * 4, cuda_test_stream());
  EXPECT_EQ(device_values(x)[999], 999);
  EXPECT_THROW(cuda::allocate_device("far too much", int64_t{1} << 50), Error);
  EXPECT_FALSE(std::isnan(device_values(x)[0])) << "an allocation that failed broke a later call";
}

TEST_F(CudaStreams, ArenaHandsOutPoisonInTheOrderOfItsStream) {
  const bool before = poison();
  set_poison(true);
  for (Stream* stream : {static_cast<Stream*>(nullptr), &cuda_test_stream()}) {
    Arena arena("test", Device::cuda, 4096, stream);
    const Arena::Mark start = arena.mark();
    const Tensor a = arena.allocate("a", DType::f32, {10});
    EXPECT_TRUE(std::isnan(device_values(a)[9]));
    fill({a, 1.0}, cuda_test_stream());
    EXPECT_EQ(device_values(a), Values(10, 1.0));
    arena.rewind(start);
    const Tensor again = arena.allocate("again", DType::f32, {10});
    EXPECT_EQ(again.data, a.data);
    EXPECT_TRUE(std::isnan(device_values(again)[0]));
    EXPECT_THROW(arena.allocate("large", DType::f32, {2000}), Error);
  }
  set_poison(before);
}

/// However far the arena's own stream is behind.
TEST_F(CudaStreams, PoisonKeepsTheOrderOfTheStreamThatUsesTheMemory) {
  const bool before = poison();
  set_poison(true);
  Stream& compute = cuda_test_stream();
  const auto beside = compute.make_beside("beside");
  Arena arena("test", Device::cuda, 4096, &compute);
  beside->wait(compute.record());
  compute.enqueue([] { std::this_thread::sleep_for(std::chrono::milliseconds(50)); });
  const Tensor mine = arena.allocate("mine", DType::f32, {10}, beside.get());
  fill({mine, 1.0}, *beside);
  beside->record().wait();
  compute.record().wait();
  EXPECT_EQ(device_values(mine), Values(10, 1.0));
  set_poison(before);
}

TEST_F(CudaStreams, RefusesTensorsOfTheHost) {
  const Owned x = zeros(DType::f32, {4});
  EXPECT_THROW(add({x, x, x}, cuda_test_stream()), Error);
}

}  // namespace
}  // namespace weft
