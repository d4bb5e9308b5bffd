// Own attention kernels against the CPU twin in f64: masks, documents, GQA, key blocks in any
// order, views of a fused projection. Long shards: cuda_long_attention_test.cpp.
#include "src/kernels/cuda/attention_ways.hpp"
#include "tests/cuda/attention_testing.hpp"

namespace weft {
namespace {

/// Tensor cores take probabilities and their gradients rounded to bf16. Everything else computes in
/// f32 all the way, bf16 in rows that are not whole packs too; log-sum-exps always are f32.
double tolerance_of(const Problem& p) {
  return tolerance_of(p.s.dim % 8 == 0 ? p.dtype : DType::f32);
}

void expect_same(const Result& got, const Result& reference, double tolerance) {
  EXPECT_LE(relative_rms(got.out, reference.out), tolerance) << "out";
  EXPECT_LE(relative_rms_of_logs(got.lse, reference.lse), tolerance_of(DType::f32)) << "lse";
  const double floor = 0.1 * rms(reference.dv);  // where a query sees one key dq and dk cancel
  EXPECT_LE(relative_rms(got.dq, reference.dq, floor), tolerance) << "dq";
  EXPECT_LE(relative_rms(got.dk, reference.dk, floor), tolerance) << "dk";
  EXPECT_LE(relative_rms(got.dv, reference.dv), tolerance) << "dv";
}

void check(const Problem& p, const std::vector<Range>& blocks) {
  expect_same(on_device(p, blocks), on_host(p, {{0, p.s.keys}}), tolerance_of(p));
}

class CudaAttention : public CudaDtypeTest {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaAttention, testing::Values(DType::f32, DType::bf16),
                         dtype_name);

TEST_P(CudaAttention, MasksAndDocuments) {
  for (const Mask mask : {Mask{true, 0}, Mask{false, 0}, Mask{true, 50}, Mask{false, 20}}) {
    for (const std::vector<int64_t>& documents :
         {std::vector<int64_t>{}, {64}, {1, 63, 65, 130, 299}}) {
      for (const int64_t dim : {64, 128}) {
        SCOPED_TRACE(concat("causal ", mask.causal, " window ", mask.window, " documents ",
                            documents.size(), " D ", dim));
        const Problem p = problem(dtype(), {2, 2, 1, dim, 300, 300}, documents, mask);
        check(p, {{0, 300}});
      }
    }
  }
}

TEST_P(CudaAttention, BlocksInAnyOrder) {
  const Problem p = problem(dtype(), {1, 4, 2, 64, 150, 500}, {371, 420}, {true, 0});
  check(p, {{0, 125}, {125, 250}, {250, 375}, {375, 500}});
  check(p, {{375, 500}, {0, 1}, {1, 1}, {64, 375}, {1, 64}});
}

TEST_P(CudaAttention, HeadsAndWidths) {
  for (const Sizes& s : std::vector<Sizes>{{1, 1, 1, 1, 70, 70},
                                           {2, 3, 1, 3, 65, 65},
                                           {1, 6, 2, 8, 64, 129},
                                           {2, 4, 4, 33, 1, 100},
                                           {1, 2, 1, 96, 63, 128},
                                           {1, 5, 5, 128, 130, 130}}) {
    SCOPED_TRACE(concat("H ", s.heads, " G ", s.kv_heads, " D ", s.dim, " Tq ", s.queries));
    check(problem(dtype(), s, {20}, {true, 0}), {{0, s.keys}});
  }
}

TEST_P(CudaAttention, AnyInterval) {  // of no document: some empty, some past both ends
  const int64_t tokens = 400, queries = 200;
  const RandomStream random(test_seed(), "intervals");
  Values begin, end;
  for (int64_t i = 0; i < 2 * queries; ++i) {
    begin.push_back(static_cast<double>(random.below(2 * i, tokens + 20)) - 10);
    end.push_back(begin.back() + static_cast<double>(random.below(2 * i + 1, tokens)) - 40);
  }
  const KeyIntervals keys{from_values(DType::i64, {2, queries}, begin),
                          from_values(DType::i64, {2, queries}, end)};
  const Problem p = problem(dtype(), {2, 2, 2, 64, queries, tokens}, keys);
  check(p, {{0, tokens}});
  check(p, {{200, tokens}, {0, 200}});
}

TEST_P(CudaAttention, NothingToSeeAndNothingThere) {
  const KeyIntervals none{filled(DType::i64, {1, 80}, 7), filled(DType::i64, {1, 80}, 7)};
  const Problem p = problem(dtype(), {1, 2, 1, 64, 80, 80}, none);
  const Result got = on_device(p, {{0, 80}});
  for (const Values* x : {&got.out, &got.dq, &got.dk, &got.dv}) EXPECT_EQ(rms(*x), 0);
  EXPECT_EQ(got.lse, Values(160, -kInfinity));
  check(problem(dtype(), {1, 2, 1, 64, 0, 10}, {}, {true, 0}), {{0, 10}});
  check(problem(dtype(), {0, 2, 1, 64, 10, 10}, {}, {true, 0}), {{0, 10}});
}

TEST_P(CudaAttention, LargeScores) {
  Problem p = problem(dtype(), {1, 2, 1, 64, 100, 100}, {40}, {true, 0});
  for (double& x : p.q) x *= 8;  // a power of two: exact in bf16; scores of some 40
  const Result got = on_device(p, {{0, 100}}), host = on_host(p, {{0, 100}});
  // A score of 40 rounds by 40 x 6e-8 x sqrt(D) at worst, the relative error of its weight.
  const bool f32 = dtype() == DType::f32;
  EXPECT_LE(relative_rms(got.out, host.out), f32 ? 2e-5 : 8e-3);
  EXPECT_LE(relative_rms(got.lse, host.lse), 1e-5);
  EXPECT_LE(relative_rms(got.dv, host.dv), f32 ? 2e-5 : 8e-3);
  EXPECT_LE(relative_rms(got.dk, host.dk), f32 ? 1e-4 : 2e-2);  // weights near 1: what is left of 1
  EXPECT_LE(relative_rms(got.dq, host.dq), f32 ? 1e-4 : 2e-2);
}

/// q, k and v as slices of one projection [B, T, H + 2 G, D].
TEST_P(CudaAttention, ReadsViewsOfAFusedProjection) {
  const Sizes s{2, 2, 1, 64, 90, 90};
  const Problem p = problem(dtype(), s, {}, {true, 0});
  const OnDevice fused(dtype(), {2, 90, 4, 64});
  const DeviceSide side(p, dtype(), DType::f32, &make_device);
  const auto heads = [&](int64_t from, int64_t to) { return fused.view().slice(2, from, to); };
  const auto put = [&](int64_t from, const Tensor& x) {
    for (int64_t h = 0; h < x.dim(2); ++h) {
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t t = 0; t < 90; ++t) {
          const auto at = [&](const Tensor& y, int64_t head) {
            return y.data +
                   (b * y.stride[0] + t * y.stride[1] + head * y.stride[2]) * size_of(dtype());
          };
          cuda::copy_bytes(at(fused, from + h), at(x, h), 64 * size_of(dtype()),
                           cuda_test_stream());
        }
      }
    }
  };
  put(0, side.q), put(2, side.k), put(3, side.v);
  AttentionBlock block = side.block(p, {0, 90});
  block.q = heads(0, 2), block.k = heads(2, 3), block.v = heads(3, 4);
  attention_forward({side.out, side.lse, side.scratch, block}, cuda_test_stream());
  EXPECT_LE(relative_rms(device_values(side.out), on_host(p, {{0, 90}}).out), tolerance_of(p));
}

/// The ways in bf16 that this build and this GPU have.
struct TensorCoreWay {
  const char* name;
  void (*forward)(const AttentionForwardArgs&, Stream&);
  void (*backward)(const AttentionBackwardArgs&, Stream&);
};
std::vector<TensorCoreWay> tensor_core_ways() {
  std::vector<TensorCoreWay> ways{{"tensor cores", &cuda::attention_forward_on_tensor_cores,
                                   &cuda::attention_backward_on_tensor_cores}};
  if (cuda::has_warpgroups()) {
    ways.push_back({"warpgroups", &cuda::attention_forward_on_warpgroups,
                    &cuda::attention_backward_on_warpgroups});
  }
  return ways;
}

/// Each way, in two blocks of keys, against the tiles in f32, which are the oracle on the card.
void check_ways(const Problem& p) {
  Stream& stream = cuda_test_stream();
  const DeviceSide tiles(p, p.dtype, DType::f32, &make_device);
  const int64_t keys = p.s.keys;
  const std::vector<Range> blocks{{keys / 3, keys}, {0, keys / 3}};
  const auto forward = [&](const DeviceSide& side, auto* way) {
    for (const Range& block : blocks) {
      way({side.out, side.lse, side.scratch, side.block(p, block)}, stream);
    }
  };
  const auto backward = [&](const DeviceSide& side, auto* way) {  // of the tiles' rows
    for (const Range& block : blocks) {
      const auto part = [&](const Tensor& t) { return t.slice(1, block.begin, block.end); };
      way({side.dq, part(side.dk), part(side.dv), side.scratch, side.dout, tiles.lse, tiles.delta,
           side.block(p, block)},
          stream);
    }
  };
  const auto result = [](const DeviceSide& side) {
    return std::vector{device_values(side.lse), device_values(side.out), device_values(side.dq),
                       device_values(side.dk), device_values(side.dv)};
  };
  forward(tiles, &cuda::attention_forward_on_tiles);
  attention_delta({tiles.delta, tiles.out, tiles.dout}, stream);
  backward(tiles, &cuda::attention_backward_on_tiles);
  const std::vector<Values> wanted = result(tiles);
  for (const TensorCoreWay& way : tensor_core_ways()) {
    SCOPED_TRACE(concat(way.name, " D ", p.s.dim, " Tq ", p.s.queries, " Tk ", keys));
    ASSERT_TRUE(cuda::attention_fits_tensor_cores(tiles.block(p, {0, keys}), {}));
    const std::vector<Values> got = twice([&] {
      const DeviceSide side(p, p.dtype, DType::f32, &make_device);
      forward(side, way.forward);
      backward(side, way.backward);
      return result(side);
    });
    EXPECT_LE(relative_rms_of_logs(got[0], wanted[0]), 1e-5) << "lse";
    const char* const names[] = {"", "out", "dq", "dk", "dv"};
    for (int i = 1; i < 5; ++i) EXPECT_LE(relative_rms(got[i], wanted[i]), 8e-3) << names[i];
  }
}

TEST(CudaAttentionTiles, ComputeWhatTensorCoresDo) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  for (const int64_t dim : {8, 40, 64, 96, 128}) {
    check_ways(problem(DType::bf16, {2, 4, 2, dim, 200, 333}, {150, 260, 300}, {true, 0}));
  }
  for (const int64_t dim : {64, 128}) {  // more steps than there are slots, with and without masks
    check_ways(problem(DType::bf16, {1, 6, 2, dim, 1000, 1100}, {130, 700}, {true, 0}));
    check_ways(problem(DType::bf16, {1, 2, 2, dim, 700, 900}, {}, {false, 0}));
    check_ways(problem(DType::bf16, {2, 2, 1, dim, 600, 650}, {}, {true, 70}));
  }
}

/// Intervals of no document, so that a step's first and last queries may see nothing that the
/// others see.
TEST(CudaAttentionTiles, ComputeWhatTensorCoresDoUnderAnyInterval) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  const int64_t queries = 500, keys = 700;
  const RandomStream random(test_seed(), "intervals");
  Values begin, end;
  for (int64_t i = 0; i < queries; ++i) {
    begin.push_back(static_cast<double>(random.below(2 * i, keys + 20)) - 10);
    end.push_back(begin.back() + static_cast<double>(random.below(2 * i + 1, keys)) - 40);
  }
  const KeyIntervals intervals{from_values(DType::i64, {1, queries}, begin),
                               from_values(DType::i64, {1, queries}, end)};
  for (const int64_t dim : {64, 128}) {
    check_ways(problem(DType::bf16, {1, 4, 2, dim, queries, keys}, intervals));
  }
}

/// The tiles, by which rows that do not start on 16 bytes are computed, against the CPU.
TEST(CudaAttentionTiles, ComputeBf16InF32) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  for (const int64_t dim : {64, 128}) {
    const Problem p = problem(DType::bf16, {2, 4, 2, dim, 200, 333}, {150, 260, 300}, {true, 0});
    const DeviceSide tiles(p, p.dtype, DType::f32, &make_device);
    const AttentionBlock block = tiles.block(p, {0, 333});
    Stream& stream = cuda_test_stream();
    cuda::attention_forward_on_tiles({tiles.out, tiles.lse, tiles.scratch, block}, stream);
    attention_delta({tiles.delta, tiles.out, tiles.dout}, stream);
    cuda::attention_backward_on_tiles(
        {tiles.dq, tiles.dk, tiles.dv, tiles.scratch, tiles.dout, tiles.lse, tiles.delta, block},
        stream);
    const Result host = on_host(p, {{0, 333}});
    EXPECT_LE(relative_rms(device_values(tiles.out), host.out), 1e-5);
    EXPECT_LE(relative_rms(device_values(tiles.dq), host.dq), 1e-5);
    EXPECT_LE(relative_rms(device_values(tiles.dk), host.dk), 1e-5);
  }
}

}  // namespace
}  // namespace weft
