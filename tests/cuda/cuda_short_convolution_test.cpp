// The CUDA twin of the short convolution against the CPU's in f64, which gets the inputs as the
// GPU's dtype rounds them.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/short_convolution.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

class CudaShortConvolution : public CudaDtypeTest {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaShortConvolution, testing::Values(DType::f32, DType::bf16),
                         dtype_name);

struct Problem {
  int64_t B, T, D, taps, before_rows;

  std::vector<int64_t> shape() const { return {B, T, D}; }
  std::vector<int64_t> before_shape() const { return {before_rows, B, D}; }
  std::vector<int64_t> weight_shape() const { return {D, 1, taps}; }
  int64_t numel() const { return B * T * D; }

  /// Documents of random lengths; the first goes on from before the shard.
  Values positions() const {
    Values out;
    const Values lengths = random_integers(B * T, "documents", 2 * kMostTaps);
    for (int64_t b = 0; b < B; ++b) {
      int64_t position = before_rows == taps - 1 ? 70000 : before_rows;
      for (int64_t t = 0; t < T; ++t, ++position) {
        if (lengths[b * T + t] == 0) position = 0;
        out.push_back(static_cast<double>(position));
      }
    }
    return out;
  }
};

struct Inputs {
  Values x, before, weight, positions, dy, dweight;
};

/// y, dx, dbefore, dweight.
template <class Make, class Read>
std::vector<Values> run(const Problem& p, const Inputs& in, DType dtype, DType wide,
                        const Make& make, const Read& read, Stream& stream) {
  const auto x = make(dtype, p.shape(), &in.x), weight = make(dtype, p.weight_shape(), &in.weight);
  const auto positions = make(DType::i64, {p.B, p.T}, &in.positions);
  const auto y = make(dtype, p.shape(), nullptr), dx = make(wide, p.shape(), nullptr);
  const auto dy = make(wide, p.shape(), &in.dy);
  const auto dweight = make(wide, p.weight_shape(), &in.dweight);
  const auto before = make(dtype, p.before_shape(), &in.before);
  const auto dbefore = make(wide, p.before_shape(), nullptr);
  const bool none = p.before_rows == 0;
  const Tensor before_view = none ? Tensor{} : before.view();
  const Tensor dbefore_view = none ? Tensor{} : dbefore.view();
  short_convolution_forward({y, x, before_view, weight, positions}, stream);
  short_convolution_backward({dx, dbefore_view, dweight, dy, x, before_view, weight, positions},
                             stream);
  return {read(y), read(dx), read(dbefore), read(dweight)};
}

std::vector<Values> on_the_cpu(const Problem& p, const Inputs& in) {
  const auto make = [](DType dtype, const std::vector<int64_t>& shape, const Values* source) {
    return source == nullptr ? Owned(dtype, shape) : from_values(dtype, shape, *source);
  };
  const auto read = [](const Tensor& t) { return values(t); };
  return run(p, in, DType::f64, DType::f64, make, read, cpu_stream());
}

std::vector<Values> on_the_gpu(const Problem& p, const Inputs& in, DType dtype) {
  const auto make = [](DType type, const std::vector<int64_t>& shape, const Values* source) {
    return source == nullptr ? OnDevice(type, shape) : OnDevice(type, shape, *source);
  };
  return run(p, in, dtype, DType::f32, make, device_values, cuda_test_stream());
}

Inputs random_inputs(const Problem& p, DType dtype) {
  return {random_values(dtype, p.numel(), "x"),
          random_values(dtype, p.before_rows * p.B * p.D, "before"),
          random_values(dtype, p.D * p.taps, "weight"),
          p.positions(),
          random_values(DType::f32, p.numel(), "dy"),
          random_values(DType::f32, p.D * p.taps, "dweight")};
}

TEST_P(CudaShortConvolution, IsTheCpuTwin) {
  for (const Problem& p : std::vector<Problem>{{1, 1, 1, 1, 0},
                                               {2, 0, 8, 4, 3},
                                               {0, 5, 8, 4, 3},
                                               {2, 1, 8, 4, 3},
                                               {3, 2, 5, 4, 1},
                                               {2, 31, 64, 4, 0},
                                               {1, 32, 256, 3, 2},
                                               {2, 33, 100, 2, 1},
                                               {1, 100, 2048, 4, 3},
                                               {3, 65, 24, 1, 0},
                                               {2, 70, 40, 5, 4},
                                               {2, 37, 64, 16, 15},
                                               {1, 7, 9, 16, 6},
                                               {1, 20000, 136, 4, 2},
                                               {2, 3000, 33, 9, 8}}) {
    SCOPED_TRACE(concat(p.B, " x ", p.T, " x ", p.D, " taps ", p.taps, " before ", p.before_rows));
    const Inputs in = random_inputs(p, dtype());
    const auto host = on_the_cpu(p, in);
    const auto got = twice([&] { return on_the_gpu(p, in, dtype()); });
    EXPECT_LE(relative_rms(got[0], host[0]), tolerance_of(dtype())) << "y";
    EXPECT_LE(relative_rms(got[1], host[1]), 1e-5) << "dx";  // its type is f32 whatever x is
    if (p.before_rows > 0) {
      EXPECT_LE(relative_rms(got[2], host[2], 0.1), 1e-5) << "dbefore";
    }
    EXPECT_LE(relative_rms(got[3], host[3], 1), 1e-5) << "dweight";
  }
}

/// A token's result does not depend on where its shard or its thread's strip begins.
TEST_P(CudaShortConvolution, AShardHasTheBitsOfTheWhole) {
  for (const int64_t taps : {4, 7}) {
    const Problem p{1, 90, 24, taps, 0};
    const Inputs in = random_inputs(p, dtype());
    const Values whole = on_the_gpu(p, in, dtype())[0];
    for (const int64_t cut : {1, 2, 31, 32, 50, 89}) {
      const int64_t rows = std::min(cut, taps - 1);
      const Problem part{1, p.T - cut, p.D, taps, rows};
      const auto from = [&](const Values& all, int64_t begin, int64_t end, int64_t width) {
        return Values(all.begin() + begin * width, all.begin() + end * width);
      };
      const Inputs shard{
          from(in.x, cut, p.T, p.D),       from(in.x, cut - rows, cut, p.D), in.weight,
          from(in.positions, cut, p.T, 1), from(in.dy, cut, p.T, p.D),       in.dweight};
      EXPECT_TRUE(same_bits(on_the_gpu(part, shard, dtype())[0], from(whole, cut, p.T, p.D)))
          << "taps " << taps << " cut " << cut;
    }
  }
}

TEST_P(CudaShortConvolution, SaturatesAndReadsNoOtherDocument) {
  const Problem p{1, 4, 4, 2, 1};
  Inputs in = random_inputs(p, dtype());
  const double nan = std::nan("");
  in.x = {nan, nan, nan, nan, -800, 800, -10000, 10000, 0, 0, 0, 0, 1, 1, 1, 1};
  in.before = Values(4, nan);
  in.weight = {0, 1, 0, 1, 0, 1, 0, 1};
  in.positions = {9, 0, 1, 2};
  in.dy = Values(16, 1);
  const auto got = on_the_gpu(p, in, dtype());
  const Values expected = rounded(dtype(), {0, 800, 0, 10000, 0, 0, 0, 0});
  const Values slope = {0, 1, 0, 1, 0.5, 0.5, 0.5, 0.5};
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(got[0][4 + i], expected[i], 1e-30) << "y " << i;
    EXPECT_NEAR(got[1][4 + i], slope[i], 1e-6) << "dx " << i;
  }
}

/// As NaN, for the CPU twin refuses it and a kernel cannot.
TEST_F(CudaTest, ShortConvolutionOfATokenThatIsNotThereIsNan) {
  const Problem p{1, 3, 4, 4, 1};
  Inputs in = random_inputs(p, DType::f32);
  in.positions = {1, 5, 6};
  const Values y = on_the_gpu(p, in, DType::f32)[0];
  for (int c = 0; c < 4; ++c) {
    EXPECT_TRUE(std::isfinite(y[c]));
    EXPECT_TRUE(std::isnan(y[4 + c]));
    EXPECT_TRUE(std::isfinite(y[8 + c]));
  }
}

}  // namespace
}  // namespace weft
