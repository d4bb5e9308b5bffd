// cuBLASLt behind weft::matmul: every form of the product, accumulation, rows with gaps.
#include <gtest/gtest.h>

#include "src/kernels/matmul.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

struct Types {
  DType in, out;
};
class CudaMatmul : public testing::TestWithParam<Types> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaMatmul,
                         testing::Values(Types{DType::f32, DType::f32},
                                         Types{DType::bf16, DType::bf16},
                                         Types{DType::bf16, DType::f32}),
                         [](const auto& p) {
                           return concat(name(p.param.in), "_to_", name(p.param.out));
                         });

struct Case {
  int64_t m, n, k;
  int64_t gap = 0;  // elements between the rows
};

const std::vector<Case> kCases = {{1, 1, 1},      {0, 5, 7},        {5, 0, 7},      {5, 7, 0},
                                  {17, 33, 65},   {64, 128, 256},   {300, 511, 77}, {8, 264, 40, 8},
                                  {31, 9, 15, 3}, {256, 128, 4096}, {520, 384, 768}};

/// [rows, columns] inside [rows, columns + gap].
Tensor inside(const Tensor& t, int64_t gap) {
  return t.slice(1, 0, t.dim(1) - gap);
}

TEST_P(CudaMatmul, EveryForm) {
  const auto [in, out] = GetParam();
  for (const auto& [m, n, k, gap] : kCases) {
    for (int form = 0; form < 8; ++form) {
      const bool ta = form & 1, tb = form & 2, accumulate = form & 4;
      SCOPED_TRACE(concat(m, " x ", n, " x ", k, " gap ", gap, " form ", form));
      const std::vector<int64_t> as = {ta ? k : m, (ta ? m : k) + gap};
      const std::vector<int64_t> bs = {tb ? n : k, (tb ? k : n) + gap}, cs = {m, n + gap};
      const Values a = random_values(in, as[0] * as[1], "a"),
                   b = random_values(in, bs[0] * bs[1], "b");
      const Values c = random_values(out, cs[0] * cs[1], "c");
      const Owned ha = f64(as, a), hb = f64(bs, b), hc = f64(cs, c);
      matmul({inside(hc, gap), inside(ha, gap), inside(hb, gap), ta, tb, accumulate, 0.5},
             cpu_stream());
      const auto got = twice([&, in = in, out = out, gap = gap] {
        const OnDevice ga(in, as, a), gb(in, bs, b), gc(out, cs, c);
        if (!accumulate && gap == 0) poison_fill(gc, &cuda_test_stream());
        matmul({inside(gc, gap), inside(ga, gap), inside(gb, gap), ta, tb, accumulate, 0.5},
               cuda_test_stream());
        return std::vector<Values>{device_values(gc)};
      });
      expect_near(got[0], hc, tolerance_of(out), "c");  // what lies in the gaps stays
    }
  }
}

TEST_F(CudaTest, MatmulRefusesOtherTypes) {
  const OnDevice f(DType::f32, {4, 4}), h(DType::bf16, {4, 4}), d(DType::f64, {4, 4});
  EXPECT_THROW(matmul({h, f, f}, cuda_test_stream()), Error);
  EXPECT_THROW(matmul({f, f, h}, cuda_test_stream()), Error);
  EXPECT_THROW(matmul({d, d, d}, cuda_test_stream()), Error);
}

}  // namespace
}  // namespace weft
