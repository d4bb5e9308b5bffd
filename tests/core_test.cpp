// src/core and src/tensor: cuts, documents, random numbers, streams, arenas.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <future>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "src/core/check.hpp"
#include "src/core/device.hpp"
#include "src/core/random.hpp"
#include "src/core/segment_map.hpp"
#include "src/core/shard.hpp"
#include "src/tensor/arena.hpp"

namespace weft {
namespace {

template <class F>
ExitCode code_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::done;
}

// ---- Errors

TEST(Check, KnowsWhereAndWhy) {
  try {
    WEFT_CHECK(1 + 1 == 3, "sum ", 2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::internal);
    EXPECT_STREQ(error.what(), "1 + 1 == 3 is false: sum 2");
    EXPECT_NE(error.where().find("core_test.cpp:"), std::string::npos);
  }
  EXPECT_EQ(code_of([] { WEFT_REQUIRE(false, ExitCode::data, "no"); }), ExitCode::data);
  EXPECT_EQ(code_of([] { WEFT_CALL(5); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { WEFT_CALL(0); }), ExitCode::done);
}

// ---- Cuts

TEST(Cuts, EvenPiecesTileTheWhole) {
  for (int64_t total = 0; total < 40; ++total) {
    for (int pieces = 1; pieces < 12; ++pieces) {
      const Cuts cuts = Cuts::even(total, pieces);
      ASSERT_EQ(cuts.pieces(), pieces);
      ASSERT_EQ(cuts.begin(0), 0);
      ASSERT_EQ(cuts.total(), total);
      for (int p = 0; p < pieces; ++p) {
        ASSERT_EQ(cuts.begin(p), p * total / pieces);
        ASSERT_EQ(cuts.end(p), p + 1 < pieces ? cuts.begin(p + 1) : total);
      }
      ASSERT_EQ(cuts.largest(), (total + pieces - 1) / pieces);
    }
  }
}

TEST(Cuts, EvenDoesNotOverflow) {
  const int64_t most = INT64_MAX;
  EXPECT_EQ(Cuts::even(most, 1000).end(999), most);
  EXPECT_LE(Cuts::even(most, 1000).largest(), most / 1000 + 1);
}

TEST(Cuts, OfSizes) {
  const Cuts cuts = Cuts::of_sizes({3, 0, 1, 5, 0});
  EXPECT_EQ(cuts.pieces(), 5);
  EXPECT_EQ(cuts.total(), 9);
  EXPECT_EQ(cuts.begin(1), 3);
  EXPECT_EQ(cuts.size(1), 0);
  EXPECT_EQ(cuts.size(2), 1);
  EXPECT_EQ(cuts.largest(), 5);
  EXPECT_EQ(Cuts::of_sizes({}).total(), 0);
  EXPECT_EQ(code_of([] { Cuts::of_sizes({1, -1}); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { Cuts::even(4, 0); }), ExitCode::internal);
}

// ---- Documents

/// Every set of document starts in a sample of `tokens`, both ways to end.
std::vector<SegmentMap> all_maps(int64_t tokens) {
  std::vector<SegmentMap> maps;
  for (int bits = 0; bits < 1 << (tokens - 1); ++bits) {
    std::vector<int64_t> starts;
    for (int64_t t = 1; t < tokens; ++t) {
      if (bits >> (t - 1) & 1) starts.push_back(t);
    }
    for (const bool continues : {false, true}) maps.emplace_back(tokens, starts, continues);
  }
  return maps;
}

TEST(SegmentMap, AgreesWithATokenByTokenView) {
  constexpr int64_t kTokens = 7;
  int maps = 0;
  for (const SegmentMap& map : all_maps(kTokens)) {
    ASSERT_EQ(map.starts().front(), 0);
    std::vector<int> document(kTokens, 0);  // of each token
    for (const int64_t start : map.starts()) {
      if (start > 0) {
        for (int64_t t = start; t < kTokens; ++t) ++document[t];
      }
    }
    const bool continues = maps++ % 2 == 1;
    for (int64_t t = 0; t < kTokens; ++t) {
      int64_t begin = t, end = t + 1;
      while (begin > 0 && document[begin - 1] == document[t]) --begin;
      while (end < kTokens && document[end] == document[t]) ++end;
      ASSERT_EQ(map.document_begin(t), begin);
      ASSERT_EQ(map.document_end(t), end);
      ASSERT_EQ(map.position(t), t - begin);
      ASSERT_EQ(map.has_label(t), t + 1 < kTokens ? end > t + 1 : continues);
    }
  }
  EXPECT_EQ(maps, 2 * 64);
}

TEST(SegmentMap, LabelCountsAreSumsOverAnyRange) {
  for (const SegmentMap& map : all_maps(6)) {
    for (int64_t begin = 0; begin <= 6; ++begin) {
      for (int64_t end = begin; end <= 6; ++end) {
        int64_t labels = 0;
        for (int64_t t = begin; t < end; ++t) labels += map.has_label(t);
        ASSERT_EQ(map.labels(begin, end), labels);
      }
    }
  }
}

TEST(SegmentMap, Edges) {
  EXPECT_EQ(SegmentMap::single(4).labels(0, 4), 4);
  EXPECT_EQ(SegmentMap(0, {}, true).labels(0, 0), 0);
  EXPECT_EQ(SegmentMap(5, {0, 2}, false).starts(), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(code_of([] { SegmentMap(5, {2, 2}, true); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { SegmentMap(5, {3, 2}, true); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { SegmentMap(5, {5}, true); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { SegmentMap(5, {-1}, true); }), ExitCode::internal);
  EXPECT_EQ(code_of([] { SegmentMap::single(5).position(5); }), ExitCode::internal);
}

// ---- Random numbers

using Block = std::array<uint32_t, 4>;

TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, StreamsAreNamedAndRepeatable) {
  const RandomStream a(1, "a"), again(1, "a"), b(1, "b"), other_seed(2, "a");
  int equal = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(a.bits(i), again.bits(i));
    equal += a.bits(i) == b.bits(i);
    equal += a.bits(i) == other_seed.bits(i);
    equal += a.bits(i) == a.bits(i + 1);
  }
  EXPECT_EQ(equal, 0);
  EXPECT_NE(a.bits(5), a.bits(5 + (uint64_t{1} << 32)));  // all 64 bits of the index count
}

TEST(Random, MomentsAndBounds) {
  const RandomStream random(3, "moments");
  constexpr int kDraws = 200'000;
  double mean = 0, normal_mean = 0, normal_square = 0;
  std::vector<int> counts(7, 0);
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform(i);
    ASSERT_TRUE(u >= 0 && u < 1);
    const double z = random.normal(i);
    ASSERT_TRUE(std::isfinite(z));
    mean += u / kDraws;
    normal_mean += z / kDraws;
    normal_square += z * z / kDraws;
    ++counts.at(random.below(i, 7));
  }
  // Five standard errors each.
  EXPECT_NEAR(mean, 0.5, 5 * std::sqrt(1 / 12.0 / kDraws));
  EXPECT_NEAR(normal_mean, 0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(normal_square, 1, 5 * std::sqrt(2.0 / kDraws));
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 7.0, 5 * std::sqrt(kDraws / 7.0));
  EXPECT_EQ(random.below(0, 1), 0u);
}

// ---- Streams and events

TEST(Event, DefaultIsComplete) {
  const Event event;
  EXPECT_TRUE(event.ready());
  event.wait();
}

TEST(Event, PendingBlocksUntilComplete) {
  const Event event = Event::pending();
  EXPECT_FALSE(event.ready());
  std::atomic<bool> passed = false;
  std::thread waiter([&] {
    event.wait();
    passed = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(passed);
  event.complete();
  waiter.join();
  EXPECT_TRUE(passed);
  EXPECT_TRUE(event.ready());
}

TEST(Event, DeliversOnceBeforeAnyWaitReturns) {
  for (int round = 0; round < 20; ++round) {
    const Event event = Event::pending();
    std::atomic<int> deliveries = 0;
    event.on_first_wait([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      ++deliveries;
    });
    std::vector<std::thread> waiters;
    for (int w = 0; w < 3; ++w) {
      waiters.emplace_back([&] {
        event.wait();
        EXPECT_EQ(deliveries, 1);
      });
    }
    EXPECT_EQ(deliveries, 0);
    event.complete();
    for (std::thread& waiter : waiters) waiter.join();
    event.wait();
    EXPECT_EQ(deliveries, 1);
  }
}

TEST(Event, AFailureIsRethrownToEveryWaiterAndNothingDelivered) {
  const Event event = Event::pending();
  bool delivered = false;
  event.on_first_wait([&] { delivered = true; });
  event.complete(std::make_exception_ptr(Error(ExitCode::hang, "lost")));
  for (int wait = 0; wait < 2; ++wait) {
    EXPECT_EQ(code_of([&] { event.wait(); }), ExitCode::hang);
  }
  EXPECT_FALSE(delivered);
}

TEST(WorkerStream, RunsInOrderAndRecordsWhatCameBefore) {
  const auto stream = make_worker_stream("test");
  std::vector<int> order;  // touched by the worker, read after a wait
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 50; ++i) stream->enqueue([&order, i] { order.push_back(i); });
    stream->record().wait();
    std::vector<int> expected(50);
    std::iota(expected.begin(), expected.end(), 0);
    ASSERT_EQ(order, expected);
    order.clear();
  }
}

TEST(WorkerStream, FinishesItsWorkWhenItEnds) {
  int done = 0;
  {
    const auto stream = make_worker_stream("test");
    for (int i = 0; i < 100; ++i) stream->enqueue([&] { ++done; });
  }
  EXPECT_EQ(done, 100);
}

TEST(WorkerStream, WaitsForAnotherStream) {
  const auto first = make_worker_stream("first");
  const auto second = make_worker_stream("second");
  std::promise<void> gate;
  int value = 0;
  first->enqueue([&, opened = gate.get_future().share()] {
    opened.wait();
    value = 7;
  });
  int seen = -1;
  second->wait(first->record());
  second->enqueue([&] { seen = value; });
  const Event done = second->record();
  EXPECT_FALSE(done.ready());
  gate.set_value();
  done.wait();
  EXPECT_EQ(seen, 7);
}

TEST(WorkerStream, AnErrorReachesEveryLaterEventAndTheStreamsThatWait) {
  const auto stream = make_worker_stream("fails");
  const auto other = make_worker_stream("waits");
  const Event before = stream->record();
  stream->enqueue([] { throw Error(ExitCode::io, "gone"); });
  bool ran = false;
  stream->enqueue([&] { ran = true; });
  const Event after = stream->record();
  other->wait(after);
  other->enqueue([&] { ran = true; });
  const Event far = other->record();

  before.wait();
  EXPECT_EQ(code_of([&] { after.wait(); }), ExitCode::io);
  EXPECT_EQ(code_of([&] { stream->record().wait(); }), ExitCode::io);
  EXPECT_EQ(code_of([&] { far.wait(); }), ExitCode::io);
  EXPECT_FALSE(ran);
}

TEST(Event, OfWorkHandedOverStandsForTheOneThatIsThereLater) {
  const auto worker = make_worker_stream("hands over");
  const Event go = Event::pending(), gpu = Event::pending();
  const auto there = std::make_shared<Event>();
  worker->wait(go);
  worker->enqueue([&] { *there = gpu; });
  const Event event = Event::handed_over(worker->record(), there);
  EXPECT_FALSE(event.ready());
  go.complete();
  EXPECT_EQ(event.state()->handed_over(), gpu.state());  // waits for the worker, not for the GPU
  EXPECT_FALSE(event.ready());
  gpu.complete();
  EXPECT_TRUE(event.ready());
  event.wait();
}

TEST(Event, OfWorkHandedOverHasTheErrorOfEitherSide) {
  const auto worker = make_worker_stream("hands over");
  const auto there = std::make_shared<Event>(Event::pending());
  there->complete(std::make_exception_ptr(Error(ExitCode::hang, "lost")));
  const Event late = Event::handed_over(worker->record(), there);
  EXPECT_EQ(code_of([&] { late.wait(); }), ExitCode::hang);

  worker->enqueue([] { throw Error(ExitCode::io, "gone"); });
  const Event early = Event::handed_over(worker->record(), std::make_shared<Event>());
  EXPECT_EQ(code_of([&] { early.wait(); }), ExitCode::io);
  EXPECT_EQ(code_of([&] { early.state()->handed_over(); }), ExitCode::io);
}

TEST(InlineStream, RunsInPlaceAndThrowsInPlace) {
  const auto stream = make_inline_stream();
  EXPECT_EQ(stream->device(), Device::cpu);
  int value = 0;
  stream->enqueue([&] { value = 1; });
  EXPECT_EQ(value, 1);
  EXPECT_TRUE(stream->record().ready());
  EXPECT_THROW(stream->enqueue([] { throw std::runtime_error("here"); }), std::runtime_error);
}

TEST(MetaStream, RunsNothingAndTraces) {
  std::vector<std::string> kernels;
  Cost total;
  const auto stream = make_meta_stream([&](const KernelCall& call) {
    kernels.emplace_back(call.name);
    total += call.cost;
  });
  EXPECT_EQ(stream->device(), Device::meta);
  stream->enqueue([] { FAIL(); });
  stream->trace({"one", {2, 3}});
  stream->trace({"two", {20, 30}});
  EXPECT_TRUE(stream->record().ready());
  EXPECT_EQ(kernels, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(total.flops, 22);
  EXPECT_EQ(total.bytes, 33);
}

// ---- Arena

TEST(Arena, PeakNamesAndRewind) {
  Arena arena("test", Device::cpu, 1024);
  const Tensor a = arena.allocate("a", DType::f32, {10});  // 40 bytes, rounded up to 64
  EXPECT_EQ(arena.used(), 64);
  const auto mark = arena.mark();
  const Tensor b = arena.allocate("b", DType::f64, {16});
  EXPECT_EQ(b.data - a.data, 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data) % 64, 0u);
  arena.rewind(mark);
  EXPECT_EQ(arena.used(), 64);
  const Tensor c = arena.allocate("c", DType::u8, {1});
  EXPECT_EQ(c.data, b.data);

  EXPECT_EQ(arena.peak(), 64 + 128);
  ASSERT_EQ(arena.at_peak().size(), 2u);
  EXPECT_STREQ(arena.at_peak()[1].name, "b");
  EXPECT_EQ(arena.at_peak()[1].bytes, 128);
}

TEST(Arena, ScopeRewindsAlsoWhenItThrows) {
  Arena arena("test", Device::cpu, 256);
  EXPECT_EQ(code_of([&] {
              const Scope scope(arena);
              arena.allocate("fits", DType::u8, {200});
              arena.allocate("does not", DType::u8, {1});
            }),
            ExitCode::memory);
  EXPECT_EQ(arena.used(), 0);
  EXPECT_EQ(arena.peak(), 256);
}

TEST(Arena, CapacityIsALimitAndTheMessageNamesTheAllocation) {
  Arena arena("scratch", Device::cpu, 128);
  arena.allocate("first", DType::u8, {128});
  arena.allocate("nothing", DType::f32, {0});  // takes no room
  try {
    arena.allocate("second", DType::u8, {1});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::memory);
    EXPECT_NE(std::string(error.what()).find("'scratch': 'second'"), std::string::npos);
  }
}

TEST(Arena, MetaHasShapesAndNoBytesAndNoLimit) {
  Arena arena("meta", Device::meta, 0);
  const Tensor huge = arena.allocate("huge", DType::bf16, {1 << 20, 1 << 20});
  EXPECT_EQ(huge.data, nullptr);
  EXPECT_EQ(huge.device, Device::meta);
  EXPECT_EQ(arena.peak(), int64_t{1} << 41);
}

TEST(Arena, PoisonReadsAsNaN) {
  const bool before = poison();
  set_poison(true);
  Arena arena("test", Device::cpu, 256);
  const auto mark = arena.mark();
  for (int round = 0; round < 2; ++round) {
    const Tensor t = arena.allocate("t", DType::f32, {8});
    for (int i = 0; i < 8; ++i) EXPECT_TRUE(std::isnan(t.as<float>()[i]));
    std::memset(t.data, 0, t.nbytes());
    arena.rewind(mark);
  }
  set_poison(before);
}

}  // namespace
}  // namespace weft
