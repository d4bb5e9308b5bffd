// The gated norm against its equation and the adjoint of that in f64, finite differences, and the
// rules of its header.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "src/kernels/gated_norm.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;
using Shape = std::vector<int64_t>;

constexpr GateFunction kFunctions[] = {GateFunction::none, GateFunction::silu,
                                       GateFunction::sigmoid};

class GatedNorm : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, GatedNorm, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

struct Inputs {
  Owned x, gate, weight, dy;
};

Inputs inputs(DType dtype, GateFunction function, const Shape& shape) {
  return {normals(dtype, shape, "x"),
          function == GateFunction::none ? Owned() : normals(dtype, shape, "gate", 3),
          normals(dtype, {shape[1]}, "weight"), normals(dtype, shape, "dy")};
}

struct Reference {
  Values y, rstd, dx, dgate, dweight;
};

/// f and f' of the gate, by way of tanh.
std::array<double, 2> gate_of(GateFunction function, const Values& gate, size_t i) {
  if (function == GateFunction::none) return {1, 0};
  const double t = std::tanh(gate[i] / 2), s = (1 + t) / 2, slope = (1 - t * t) / 4;
  if (function == GateFunction::sigmoid) return {s, slope};
  return {gate[i] * s, s + gate[i] * slope};
}

/// The gradient of x from the whole Jacobian of a row: d y_j / d x_c.
Reference reference_of(const Inputs& o, GateFunction function, double eps) {
  const Values x = values(o.x), w = values(o.weight), dy = values(o.dy);
  const Values gate = o.gate.view() ? values(o.gate) : Values{};
  const size_t rows = o.x.view().dim(0), width = o.x.view().dim(1);
  Reference r{Values(x.size()), Values(rows), Values(x.size()), Values(gate.size()), Values(width)};
  for (size_t row = 0; row < rows; ++row) {
    const size_t first = row * width;
    double mean = 0;
    for (size_t c = 0; c < width; ++c) mean += x[first + c] * x[first + c] / double(width);
    const double rstd = r.rstd[row] = std::pow(mean + eps, -0.5);
    for (size_t j = 0; j < width; ++j) {
      const size_t i = first + j;
      const auto [f, slope] = gate_of(function, gate, i);
      r.y[i] = x[i] * rstd * w[j] * f;
      r.dweight[j] += dy[i] * x[i] * rstd * f;
      if (!gate.empty()) r.dgate[i] = dy[i] * x[i] * rstd * w[j] * slope;
      for (size_t c = 0; c < width; ++c) {
        const double drstd = -std::pow(rstd, 3) * x[first + c] / double(width);
        r.dx[first + c] += dy[i] * w[j] * f * ((c == j ? rstd : 0) + x[i] * drstd);
      }
    }
  }
  return r;
}

/// Poisoned outputs.
struct Outputs {
  Owned y, rstd, dx, dgate, again;
  Outputs(DType dtype, GateFunction function, const Shape& shape)
      : y(dtype, shape),
        rstd(dtype, {shape[0]}),
        dx(dtype, shape),
        dgate(function == GateFunction::none ? Owned() : Owned(dtype, shape)),
        again(dtype, shape) {}
};

TEST_P(GatedNorm, IsTheEquationAndItsAdjoint) {
  for (const Shape& shape : std::vector<Shape>{{0, 8}, {1, 1}, {3, 5}, {8, 64}, {5, 129}}) {
    for (const GateFunction function : kFunctions) {
      for (const double eps : {1e-5, 0.5}) {
        SCOPED_TRACE(concat(shape[0], "x", shape[1], " function ", int(function), " eps ", eps));
        const Inputs o = inputs(dtype(), function, shape);
        const Reference r = reference_of(o, function, eps);
        const Outputs got(dtype(), function, shape);
        const Owned dweight = normals(dtype(), {shape[1]}, "dweight");
        const Values before = values(dweight);
        gated_norm_forward({got.y, got.rstd, o.x, o.gate, o.weight, function, eps}, cpu_stream());
        gated_norm_backward({got.dx, got.dgate, dweight, got.again, o.dy, o.x, got.rstd, o.gate,
                             o.weight, function},
                            cpu_stream());
        EXPECT_LE(relative_rms(values(got.y), r.y), tolerance());
        EXPECT_LE(relative_rms(values(got.rstd), r.rstd), tolerance());
        EXPECT_TRUE(same_bits(values(got.again), values(got.y))) << "recompute is not the forward";
        const Owned in_place = copy_of(o.dy), sums = zeros(dtype(), {shape[1]});
        gated_norm_backward({in_place, got.dgate, sums, got.again, in_place, o.x, got.rstd, o.gate,
                             o.weight, function},
                            cpu_stream());
        EXPECT_TRUE(same_bits(values(in_place), values(got.dx)));
        // A row of one is nearly constant: what is left of its gradient is what two terms cancel
        // to.
        EXPECT_LE(relative_rms(values(got.dx), r.dx, 1), 2 * tolerance());
        if (got.dgate.view()) {
          EXPECT_LE(relative_rms(values(got.dgate), r.dgate), tolerance());
        }
        EXPECT_LE(relative_rms(minus(values(dweight), before), r.dweight, 1), 2 * tolerance());
      }
    }
  }
}

TEST(GatedNorm, GradientsAreFiniteDifferences) {
  for (const GateFunction function : kFunctions) {
    SCOPED_TRACE(int(function));
    const Shape shape = {4, 7};
    const Inputs o = inputs(DType::f64, function, shape);
    const Outputs got(DType::f64, function, shape);
    const Owned dweight = zeros(DType::f64, {7});
    const auto loss = [&] {
      gated_norm_forward({got.y, got.rstd, o.x, o.gate, o.weight, function, 0.1}, cpu_stream());
      return dot(values(got.y), values(o.dy));
    };
    loss();
    gated_norm_backward(
        {got.dx, got.dgate, dweight, got.again, o.dy, o.x, got.rstd, o.gate, o.weight, function},
        cpu_stream());
    EXPECT_LE(finite_difference(loss, o.x, values(got.dx)), 1e-7);
    EXPECT_LE(finite_difference(loss, o.weight, values(dweight)), 1e-7);
    if (o.gate.view()) {
      EXPECT_LE(finite_difference(loss, o.gate, values(got.dgate)), 1e-7);
    }
  }
}

TEST_P(GatedNorm, GatesSaturate) {  // x = 2, so that x rstd = 1 with eps 0
  const Shape shape = {4, 1};
  for (const GateFunction function : {GateFunction::silu, GateFunction::sigmoid}) {
    const bool silu = function == GateFunction::silu;
    const Owned gate = from_values(dtype(), shape, {-800, 800, -1e4, 1e4});
    const Owned x = filled(dtype(), shape, 2), weight = filled(dtype(), {1}, 3);
    const Owned dy = filled(dtype(), shape, 1), dweight = zeros(dtype(), {1});
    const Outputs got(dtype(), function, shape);
    gated_norm_forward({got.y, got.rstd, x, gate, weight, function, 0}, cpu_stream());
    gated_norm_backward(
        {got.dx, got.dgate, dweight, got.again, dy, x, got.rstd, gate, weight, function},
        cpu_stream());
    const auto near = [](const Tensor& t, const Values& expected) {
      const Values v = values(t);
      for (size_t i = 0; i < v.size(); ++i) EXPECT_NEAR(v[i], expected[i], 1e-30) << i;
    };
    near(got.y, silu ? Values{0, 2400, 0, 3e4} : Values{0, 3, 0, 3});
    near(got.dgate, silu ? Values{0, 3, 0, 3} : Values{0, 0, 0, 0});
    near(got.dx, {0, 0, 0, 0});
    near(dweight, {silu ? 10800.0 : 2.0});
  }
}

TEST_P(GatedNorm, OfAZeroRow) {
  const Shape shape = {1, 3};
  const Owned x = zeros(dtype(), shape), weight = filled(dtype(), {3}, 2);
  const Owned dy = filled(dtype(), shape, 1), dweight = zeros(dtype(), {3});
  const Outputs got(dtype(), GateFunction::none, shape);
  gated_norm_forward({got.y, got.rstd, x, {}, weight, GateFunction::none, 0.0625}, cpu_stream());
  gated_norm_backward({got.dx, {}, dweight, got.again, dy, x, got.rstd, {}, weight}, cpu_stream());
  EXPECT_EQ(values(got.y), Values({0, 0, 0}));
  EXPECT_LE(relative_rms(values(got.rstd), {4}), tolerance());
  EXPECT_LE(relative_rms(values(got.dx), {8, 8, 8}), tolerance());
  EXPECT_EQ(values(dweight), Values({0, 0, 0}));
}

/// Rows are independent: any cut of them has the whole's bits.
TEST_P(GatedNorm, DoesNotDependOnTheCutOfRows) {
  const Shape shape = {9, 37};
  const Inputs o = inputs(dtype(), GateFunction::silu, shape);
  const Outputs whole(dtype(), GateFunction::silu, shape),
      parts = {dtype(), GateFunction::silu, shape};
  const Owned dweight = zeros(dtype(), {37}), dweight_parts = zeros(dtype(), {37});
  const auto run = [&](const Outputs& to, const Tensor& sums, int64_t begin, int64_t end) {
    const auto rows = [&](const Tensor& t) { return t.slice(0, begin, end); };
    gated_norm_forward(
        {rows(to.y), rows(to.rstd), rows(o.x), rows(o.gate), o.weight, GateFunction::silu},
        cpu_stream());
    gated_norm_backward({rows(to.dx), rows(to.dgate), sums, rows(to.again), rows(o.dy), rows(o.x),
                         rows(to.rstd), rows(o.gate), o.weight, GateFunction::silu},
                        cpu_stream());
  };
  run(whole, dweight, 0, 9);
  for (const auto& [begin, end] : {std::pair{0, 4}, {4, 4}, {4, 9}}) {
    run(parts, dweight_parts, begin, end);
  }
  EXPECT_TRUE(same_bits(values(parts.y), values(whole.y)));
  EXPECT_TRUE(same_bits(values(parts.dx), values(whole.dx)));
  EXPECT_TRUE(same_bits(values(parts.dgate), values(whole.dgate)));
  EXPECT_LE(relative_rms(values(dweight_parts), values(dweight)), tolerance());
}

/// Rows cut over ranks, by way of the two sums: the same as whole rows.
TEST_P(GatedNorm, OfRowsThatArePartsIsThatOfTheWhole) {
  const Shape shape = {6, 13};
  for (const GateFunction function : kFunctions) {
    SCOPED_TRACE(int(function));
    const Inputs o = inputs(dtype(), function, shape);
    const Outputs whole(dtype(), function, shape);
    const Owned dweight = zeros(dtype(), {13});
    gated_norm_forward({whole.y, whole.rstd, o.x, o.gate, o.weight, function, 0.1}, cpu_stream());
    gated_norm_backward({whole.dx, whole.dgate, dweight, whole.again, o.dy, o.x, whole.rstd, o.gate,
                         o.weight, function},
                        cpu_stream());
    for (const Shape& widths : std::vector<Shape>{{13}, {5, 8}, {1, 0, 12}, {3, 4, 6}}) {
      struct Part {
        Inputs in;
        Outputs out;
        Owned dweight;
        int64_t begin;
      };
      std::vector<Part> parts;
      int64_t begin = 0;
      const auto columns = [&](const Tensor& t, int64_t from, int64_t width) {
        return t ? copy_of(t.slice(t.ndim - 1, from, from + width)) : Owned();
      };
      for (const int64_t width : widths) {
        parts.push_back({{columns(o.x, begin, width), columns(o.gate.view(), begin, width),
                          columns(o.weight, begin, width), columns(o.dy, begin, width)},
                         Outputs(dtype(), function, {6, width}),
                         zeros(dtype(), {width}),
                         begin});
        begin += width;
      }
      const auto summed = [&](const auto& make) {  // over the ranks
        Values total(6);
        for (const Part& part : parts) {
          const Owned sums(dtype(), {6});
          make(part, sums);
          const Values own = values(sums);
          for (size_t r = 0; r < 6; ++r) total[r] += own[r];
        }
        return from_values(dtype(), {6}, total);
      };
      const Owned squares = summed([](const Part& part, const Tensor& sums) {
        row_squares({sums, part.in.x}, cpu_stream());
      });
      const Owned along = summed([&](const Part& part, const Tensor& sums) {
        const Inputs& in = part.in;
        gated_norm_along({sums, in.dy, in.x, in.gate, in.weight, function}, cpu_stream());
      });
      for (const Part& part : parts) {
        const auto& [in, out, dw, from] = part;
        const int64_t width = in.x.view().dim(1);
        gated_norm_forward({out.y, out.rstd, in.x, in.gate, in.weight, function, 0.1, squares, 13},
                           cpu_stream());
        gated_norm_backward({out.dx, out.dgate, dw, out.again, in.dy, in.x, out.rstd, in.gate,
                             in.weight, function, along, 13},
                            cpu_stream());
        const auto expect = [&](const Tensor& got, const Tensor& all, const char* what) {
          if (!got || width == 0) return;
          EXPECT_LE(relative_rms(values(got), values(columns(all, from, width))), 4 * tolerance())
              << what << " of " << width << " columns from " << from;
        };
        expect(out.y, whole.y, "y");
        expect(out.dx, whole.dx, "dx");
        expect(out.dgate.view(), whole.dgate.view(), "dgate");
        expect(dw, dweight, "dweight");
        EXPECT_LE(relative_rms(values(out.rstd), values(whole.rstd)), tolerance());
        EXPECT_TRUE(same_bits(values(out.again), values(out.y))) << "recompute is not the forward";
      }
    }
  }
}

/// A plain f32 sum of a million terms of one sign is off by 1e-5 and more.
TEST(GatedNorm, WeightGradientOfManyRowsKeepsItsDigits) {
  constexpr int64_t kRows = 1 << 20, kWidth = 2;
  const auto sums = [&](DType dtype) {
    const Shape shape = {kRows, kWidth};
    const Owned x = normals(dtype, shape, "x"), weight = filled(dtype, {kWidth}, 1);
    const Outputs out(dtype, GateFunction::none, shape);
    const Owned dweight = zeros(dtype, {kWidth});
    gated_norm_forward({out.y, out.rstd, x, {}, weight}, cpu_stream());
    // dy = x: every term is a square.
    gated_norm_backward({out.dx, {}, dweight, out.again, x, x, out.rstd, {}, weight}, cpu_stream());
    return values(dweight);
  };
  EXPECT_LE(relative_rms(sums(DType::f32), sums(DType::f64)), 3e-7);
}

}  // namespace
}  // namespace weft
