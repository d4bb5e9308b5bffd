// Communicators between ranks on GPUs: exact results, no wait for a GPU, failures that wake
// everybody.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <thread>

#include "src/kernels/pointwise.hpp"
#include "tests/collectives_check.hpp"
#include "tests/cuda/rank_starts.hpp"
#include "tests/placed.hpp"
#include "tests/sequence_testing.hpp"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

using Communicators = OnGpus;

TEST_P(Communicators, CollectivesAreExact) {
  GetParam()(check_collectives);
}

/// Sums whose rounding tells in which order they were made.
TEST_P(Communicators, SumsAreTheSameBitsOnAllRanksAndInEveryRun) {
  const auto sums = [&](int64_t n) {
    std::vector<std::vector<double>> out(GetParam().ranks);
    GetParam()([&](World& world) {
      TestRank rank(world, sequence_mesh(world.size()));
      Stream& stream = rank.context.compute;
      const Placed buffer(normals(DType::f32, {n}, concat("rank ", world.rank())), stream);
      const Placed scratch(Owned(DType::f32, {n / world.size() + 1}), stream);
      stream.wait(rank.context.mesh.along(Axis::sequence).all_reduce(buffer, scratch, {}, stream));
      out[world.rank()] = values(buffer.on_host(stream));
    });
    return out;
  };
  for (const int64_t n : {int64_t{1}, int64_t{1001}, int64_t{1} << 20}) {
    const auto first = sums(n), second = sums(n);
    for (const auto& one : first) EXPECT_TRUE(same_bits(one, first[0])) << n;
    EXPECT_EQ(first, second) << n;
  }
}

/// bf16 holds integers up to 256.
TEST_P(Communicators, SumsInBf16AreExact) {
  const auto term = [](int rank, int64_t i) { return static_cast<float>((rank + i) % 16); };
  GetParam()([&](World& world) {
    TestRank rank(world, sequence_mesh(world.size()));
    Communicator& comm = rank.context.mesh.along(Axis::sequence);
    Stream& stream = rank.context.compute;
    for (const Cuts& cuts : {Cuts::even(24 * comm.size(), comm.size()),
                             Cuts::even(24 * comm.size() + 1, comm.size())}) {
      const int64_t n = cuts.total(), begin = cuts.begin(comm.rank());
      Owned host(DType::bf16, {n});
      auto* bits = reinterpret_cast<uint16_t*>(host.view().data);
      for (int64_t i = 0; i < n; ++i) {
        bits[i] = std::bit_cast<uint32_t>(term(comm.rank(), i)) >> 16;
      }
      const Placed buffer(std::move(host), stream);
      const Placed scratch(Owned(DType::bf16, {cuts.largest()}), stream);
      stream.wait(comm.reduce_scatter(buffer, cuts, scratch, {}, stream));
      bits = reinterpret_cast<uint16_t*>(buffer.on_host(stream).data);
      for (int64_t i = begin; i < cuts.end(comm.rank()); ++i) {
        float sum = 0;
        for (int p = 0; p < comm.size(); ++p) sum += term(p, i);
        EXPECT_EQ(std::bit_cast<float>(uint32_t{bits[i]} << 16), sum) << i << " of " << n;
      }
    }
  });
}

/// A transfer starts after the computation before it and is waited for by that behind it, while the
/// rank's thread runs ahead of both.
TEST_P(Communicators, OrderIsKeptAndNobodyWaitsForTheGpu) {
  std::atomic<int> through = 0;
  GetParam()([&](World& world) {
    TestRank rank(world, sequence_mesh(world.size()));
    Communicator& ring = rank.context.mesh.along(Axis::sequence);
    if (ring.size() == 1) return;
    Stream& stream = rank.context.compute;
    const int64_t n = 1 << 16;
    const Placed sent = {zeros(DType::f32, {n}), stream};
    const Placed received = {Owned(DType::f32, {n}), stream};
    Arena memory("work", Device::cuda, int64_t{1} << 30);
    const Tensor work = memory.allocate("work", DType::f32, {int64_t{1} << 28});
    const auto pass = [&] {
      return ring.exchange({send_to(ring.next(), sent), receive_from(ring.prev(), received)}, {},
                           stream);
    };
    const auto round_trip = [&](double value) {
      fill({sent, value}, stream);
      stream.wait(pass());
      add({received, received, received}, stream);
    };
    round_trip(1);  // loads kernels, which waits for the GPU
    stream.record().wait();
    const auto start = Clock::now();
    for (int i = 0; i < 200; ++i) fill({work, 1.0 + i}, stream);  // a third of a millisecond each
    for (int round = 1; round <= 3; ++round) round_trip(10.0 * round + world.rank());
    const double enqueued = seconds_since(start);
    // A copy to the host keeps other threads out of CUDA while it waits for the GPU.
    for (++through; through < world.size() && !world.ended();) std::this_thread::yield();
    const std::vector<double> got = values(received.on_host(stream));
    const double done = seconds_since(start);
    EXPECT_EQ(got, std::vector<double>(n, 2 * (30.0 + ring.prev())));
    if (GetParam().transport == RankStart::Transport::staged) {
      EXPECT_EQ(ring.host_waits(), 5);  // one a transfer, and one to grow
    } else {
      EXPECT_LT(enqueued, done / 2) << "the rank's thread waited";
      EXPECT_EQ(ring.host_waits(), 0);
    }
  });
}

/// The error that ends a job of ranks, and that it comes soon.
Error error_of(const RankStart& start, double within_seconds,
               const std::function<void(World&)>& body) {
  const auto begin = Clock::now();
  try {
    start(body);
  } catch (const Error& error) {
    EXPECT_LT(seconds_since(begin), within_seconds) << error.what();
    return error;
  }
  return Error(ExitCode::done, "no error");
}

/// Rank 0 waits for a sum that the last rank never joins.
void sum_without_the_last(World& world, const std::function<void()>& last) {
  TestRank rank(world, sequence_mesh(world.size()));
  if (world.rank() + 1 == world.size()) return last();
  Stream& stream = rank.context.compute;
  const Placed buffer(zeros(DType::f32, {64}), stream), scratch(Owned(DType::f32, {64}), stream);
  stream.wait(rank.context.mesh.along(Axis::sequence).all_reduce(buffer, scratch, {}, stream));
  stream.record().wait();
}

TEST_P(Communicators, OneRankWakesAllTheOthers) {
  if (GetParam().ranks == 1) GTEST_SKIP() << "needs peers";
  const Error error = error_of(GetParam(), 60, [](World& world) {
    sum_without_the_last(world, [] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the others wait by now
      throw Error(ExitCode::data, "the last rank fails");
    });
  });
  EXPECT_EQ(error.code(), ExitCode::data) << error.what();
}

TEST_P(Communicators, AnAbsentPeerIsAHang) {
  if (GetParam().ranks == 1) GTEST_SKIP() << "needs peers";
  set_wait_deadline(2);
  const Error error = error_of(GetParam(), 60, [](World& world) {
    sum_without_the_last(world, [] { std::this_thread::sleep_for(std::chrono::seconds(4)); });
  });
  set_wait_deadline(300);
  EXPECT_EQ(error.code(), ExitCode::hang) << error.what();
}

TEST_P(Communicators, DifferentOperationsAreNamed) {
  if (GetParam().ranks == 1) GTEST_SKIP() << "needs peers";
  const Error error = error_of(GetParam(), 60, [](World& world) {
    TestRank rank(world, sequence_mesh(world.size()));
    Communicator& comm = rank.context.mesh.along(Axis::sequence);
    Stream& stream = rank.context.compute;
    const Placed buffer(zeros(DType::f32, {64}), stream), scratch(Owned(DType::f32, {64}), stream);
    stream.wait(world.rank() == 0
                    ? comm.all_reduce(buffer, scratch, {}, stream)
                    : comm.all_gather(buffer, Cuts::even(64, comm.size()), {}, stream));
    stream.record().wait();
  });
  EXPECT_EQ(error.code(), ExitCode::mismatch) << error.what();
}

INSTANTIATE_TEST_SUITE_P(Cuda, Communicators, testing::ValuesIn(kRankStarts), start_name);

}  // namespace
}  // namespace weft
