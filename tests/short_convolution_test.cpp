// The short convolution against its sum and the adjoint of that in f64, finite differences,
// documents, and shards cut anywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "src/kernels/short_convolution.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;

class ShortConvolution : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, ShortConvolution, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

struct Problem {
  int64_t B, T, D, taps, before_rows;
  Owned x, before, weight, positions, dy;
};

/// Documents begin at some tokens; the one that goes on into the shard has `before_rows` tokens
/// before it, or very many where those are all that the first token could read.
Problem problem(DType dtype, int64_t B, int64_t T, int64_t D, int64_t taps, int64_t before_rows) {
  Values positions;
  for (int64_t b = 0; b < B; ++b) {
    int64_t position = before_rows == taps - 1 ? 5000 : before_rows;
    for (int64_t t = 0; t < T; ++t, ++position) {
      if ((t + 3 * b) % 11 == 5 || (t + b) % 7 == 6) position = 0;
      positions.push_back(static_cast<double>(position));
    }
  }
  return {B,
          T,
          D,
          taps,
          before_rows,
          normals(dtype, {B, T, D}, "x"),
          before_rows > 0 ? normals(dtype, {before_rows, B, D}, "before") : Owned(),
          normals(dtype, {D, 1, taps}, "weight"),
          from_values(DType::i64, {B, T}, positions),
          normals(dtype, {B, T, D}, "dy")};
}

struct Reference {
  Values y, dx, dbefore, dweight;
};

Reference reference_of(const Problem& p) {
  const Values x = values(p.x), weight = values(p.weight), positions = values(p.positions);
  const Values before = p.before.view() ? values(p.before) : Values{}, dy = values(p.dy);
  Reference r{Values(x.size()), Values(x.size()), Values(before.size()), Values(weight.size())};
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t t = 0; t < p.T; ++t) {
      for (int64_t c = 0; c < p.D; ++c) {
        const int64_t at = (b * p.T + t) * p.D + c;
        // Calls f(value, its gradient, weight, its gradient) for every token that this one reads.
        const auto for_each_read = [&](auto&& f) {
          for (int64_t tap = 0; tap < p.taps; ++tap) {
            const int64_t back = p.taps - 1 - tap, from = t - back, w = c * p.taps + tap;
            if (static_cast<double>(back) > positions[b * p.T + t]) continue;
            if (from >= 0) {
              const int64_t i = (b * p.T + from) * p.D + c;
              f(x[i], r.dx[i], weight[w], r.dweight[w]);
            } else if (from + p.before_rows >= 0) {
              const int64_t i = ((from + p.before_rows) * p.B + b) * p.D + c;
              f(before[i], r.dbefore[i], weight[w], r.dweight[w]);
            }
          }
        };
        double z = 0;
        for_each_read([&](double v, double&, double w, double&) { z += v * w; });
        const double tanh = std::tanh(z / 2);
        r.y[at] = z * (1 + tanh) / 2;
        const double dz = dy[at] * ((1 + tanh) / 2 + z * (1 - tanh * tanh) / 4);
        for_each_read([&](double v, double& dv, double w, double& dw) {
          dv += w * dz;
          dw += v * dz;
        });
      }
    }
  }
  return r;
}

/// Poisoned outputs.
struct Outputs {
  Owned y, dx, dbefore;
  Outputs(DType dtype, const Problem& p)
      : y(dtype, {p.B, p.T, p.D}),
        dx(dtype, {p.B, p.T, p.D}),
        dbefore(p.before.view() ? Owned(dtype, {p.before_rows, p.B, p.D}) : Owned()) {}
};

void run(const Problem& p, const Outputs& out, const Tensor& dweight) {
  short_convolution_forward({out.y, p.x, p.before, p.weight, p.positions}, cpu_stream());
  short_convolution_backward(
      {out.dx, out.dbefore, dweight, p.dy, p.x, p.before, p.weight, p.positions}, cpu_stream());
}

TEST_P(ShortConvolution, IsTheSumAndItsAdjoint) {
  for (const int64_t taps : {1, 2, 4, 7, 16}) {
    for (const int64_t before_rows : {int64_t{0}, int64_t{1}, taps / 2, taps - 1}) {
      if (before_rows >= taps) continue;
      for (const auto [B, T, D] :
           {std::array<int64_t, 3>{1, 1, 1}, {2, 0, 5}, {1, 2, 33}, {2, 40, 3}, {3, 25, 70}}) {
        SCOPED_TRACE(concat("taps ", taps, " before ", before_rows, ": ", B, " ", T, " ", D));
        const Problem p = problem(dtype(), B, T, D, taps, before_rows);
        const Reference r = reference_of(p);
        const Outputs got(dtype(), p);
        const Owned dweight = normals(dtype(), {D, 1, taps}, "dweight");
        const Values sums_before = values(dweight);
        run(p, got, dweight);
        EXPECT_LE(relative_rms(values(got.y), r.y), tolerance());
        EXPECT_LE(relative_rms(values(got.dx), r.dx), tolerance());
        if (got.dbefore.view()) {
          EXPECT_LE(relative_rms(values(got.dbefore), r.dbefore), tolerance());
        }
        EXPECT_LE(relative_rms(minus(values(dweight), sums_before), r.dweight, 1), 2 * tolerance());
      }
    }
  }
}

TEST(ShortConvolution, GradientsAreFiniteDifferences) {
  const Problem p = problem(DType::f64, 2, 9, 3, 4, 3);
  const Outputs got(DType::f64, p);
  const Owned dweight = zeros(DType::f64, {3, 1, 4});
  run(p, got, dweight);
  const auto loss = [&] {
    short_convolution_forward({got.y, p.x, p.before, p.weight, p.positions}, cpu_stream());
    return dot(values(got.y), values(p.dy));
  };
  EXPECT_LE(finite_difference(loss, p.x, values(got.dx)), 1e-7);
  EXPECT_LE(finite_difference(loss, p.before, values(got.dbefore)), 1e-7);
  EXPECT_LE(finite_difference(loss, p.weight, values(dweight)), 1e-7);
}

/// Tokens [begin, end) with the last ones before them, fewer than taps where there are no more.
Problem shard_of(const Problem& p, int64_t begin, int64_t end) {
  const int64_t rows = std::min(begin, p.taps - 1);
  const auto tokens = [&](const Tensor& t) { return copy_of(t.slice(1, begin, end)); };
  Owned before;
  if (rows > 0) {
    before = Owned(p.x.view().dtype, {rows, p.B, p.D});
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t t = begin - rows + r;
      assign(before.view().slice(0, r, r + 1), values(p.x.view().slice(1, t, t + 1)));
    }
  }
  return {p.B,
          end - begin,
          p.D,
          p.taps,
          rows,
          tokens(p.x),
          std::move(before),
          copy_of(p.weight),
          tokens(p.positions),
          tokens(p.dy)};
}

TEST_P(ShortConvolution, AShardCutAnywhereGivesTheWhole) {
  const int64_t T = 23, D = 37;
  for (const int64_t taps : {1, 4, 16}) {
    const Problem p = problem(dtype(), 2, T, D, taps, 0);
    const Outputs whole(dtype(), p);
    const Owned dweight = zeros(dtype(), {D, 1, taps});
    run(p, whole, dweight);
    for (int64_t cut = 0; cut <= T; ++cut) {
      SCOPED_TRACE(concat("taps ", taps, " cut ", cut));
      const Owned sums = zeros(dtype(), {D, 1, taps}), dx = zeros(dtype(), {2, T, D});
      for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, T}}) {
        const Problem part = shard_of(p, begin, end);
        const Outputs got(dtype(), part);
        run(part, got, sums);
        EXPECT_TRUE(same_bits(values(got.y), values(whole.y.view().slice(1, begin, end))));
        const auto add_to = [&](const Tensor& to, Values more) {
          const Values had = values(to);
          for (size_t i = 0; i < more.size(); ++i) more[i] += had[i];
          assign(to, more);
        };
        add_to(dx.view().slice(1, begin, end), values(got.dx));
        for (int64_t r = 0; r < part.before_rows; ++r) {
          const int64_t t = begin - part.before_rows + r;
          add_to(dx.view().slice(1, t, t + 1), values(got.dbefore.view().slice(0, r, r + 1)));
        }
      }
      EXPECT_LE(relative_rms(values(dx), values(whole.dx)), tolerance());
      EXPECT_LE(relative_rms(values(sums), values(dweight)), tolerance());
    }
  }
}

/// What another document holds changes no bit, not even as NaN.
TEST_P(ShortConvolution, ADocumentDoesNotReadAnother) {
  const int64_t T = 12, D = 5, start = 6;
  Problem p = problem(dtype(), 1, T, D, 4, 3);
  Values at(T);
  for (int64_t t = 0; t < T; ++t) at[t] = static_cast<double>(t < start ? t + 9 : t - start);
  assign(p.positions, at);
  const Outputs clean(dtype(), p), spoilt(dtype(), p);
  const Owned dweight = zeros(dtype(), {D, 1, 4});
  run(p, clean, dweight);
  for (const Tensor& t : {p.x.view(), p.dy.view()}) {
    assign(t.slice(1, 0, start), Values(start * D, std::nan("")));
  }
  assign(p.before, Values(3 * D, std::nan("")));
  run(p, spoilt, dweight);
  const auto second = [&](const Tensor& t) { return values(t.slice(1, start, T)); };
  EXPECT_TRUE(same_bits(second(spoilt.y), second(clean.y)));
  EXPECT_TRUE(same_bits(second(spoilt.dx), second(clean.dx)));
}

TEST_P(ShortConvolution, Saturates) {
  const Owned x = from_values(dtype(), {1, 2, 2}, {-800, 800, -1e4, 1e4});
  const Owned weight = filled(dtype(), {2, 1, 1}, 1), dweight = zeros(dtype(), {2, 1, 1});
  const Owned positions = zeros(DType::i64, {1, 2}), y(dtype(), {1, 2, 2}), dx(dtype(), {1, 2, 2});
  short_convolution_forward({y, x, {}, weight, positions}, cpu_stream());
  const Owned dy = filled(dtype(), {1, 2, 2}, 1);
  short_convolution_backward({dx, {}, dweight, dy, x, {}, weight, positions}, cpu_stream());
  const auto near = [](const Tensor& t, const Values& expected) {
    const Values v = values(t);
    for (size_t i = 0; i < v.size(); ++i) EXPECT_NEAR(v[i], expected[i], 1e-30) << i;
  };
  near(y, {0, 800, 0, 1e4});
  near(dx, {0, 1, 0, 1});
  near(dweight, {0, 10800});
}

TEST_P(ShortConvolution, ATokenThatIsNotThereIsRefused) {
  const Problem p = problem(dtype(), 1, 3, 2, 4, 1);
  const Owned y(dtype(), {1, 3, 2}), positions = from_values(DType::i64, {1, 3}, {2, 3, 4});
  EXPECT_THROW(short_convolution_forward({y, p.x, p.before, p.weight, positions}, cpu_stream()),
               Error);
}

/// A plain f32 sum of a million terms of one sign is off by 1e-5 and more.
TEST(ShortConvolution, WeightGradientOfManyTokensKeepsItsDigits) {
  const auto sums = [](DType dtype) {
    constexpr int64_t kTokens = 1 << 20;
    const Owned x = normals(dtype, {1, kTokens, 1}, "x"), weight = filled(dtype, {1, 1, 2}, 1);
    const Owned dx(dtype, {1, kTokens, 1}), dweight = zeros(dtype, {1, 1, 2});
    Values positions(kTokens);
    for (int64_t t = 0; t < kTokens; ++t) positions[t] = static_cast<double>(t);
    const Owned at = from_values(DType::i64, {1, kTokens}, positions);
    short_convolution_backward({dx, {}, dweight, x, x, {}, weight, at}, cpu_stream());
    return values(dweight);
  };
  EXPECT_LE(relative_rms(sums(DType::f32), sums(DType::f64)), 1e-6);
}

}  // namespace
}  // namespace weft
