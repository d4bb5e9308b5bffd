// The kernel of every state scan: the formula for each kind of transition, zeros that let nothing
// through, and blocks that change no bit.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/state_combine.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

constexpr int64_t R = 6, K = 5, V = 19;

class StateCombine : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-14 : 2e-7; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, StateCombine, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

/// A transition of 0, 1, 2 or 3 dims; absent for 0.
Owned transition_of(int dims, DType dtype) {
  if (dims == 0) return {};
  if (dims == 3) return normals(dtype, {R, K, K}, "dense", 0.5);
  const std::vector<int64_t> shape = dims == 1 ? std::vector{R} : std::vector{R, K};
  std::vector<double> logs = normal_values(dims == 1 ? R : R * K, "logs");
  for (double& log : logs) log = -std::abs(log);
  logs[1] = 0;           // keeps everything
  logs[2] = -kInfinity;  // a document starts
  logs[3] = -1e4;        // underflows
  return from_values(dtype, shape, logs);
}

/// A[r][k, j] as the kernel's header defines it.
double element_of(const std::vector<double>& transition, int dims, int64_t r, int64_t k,
                  int64_t j) {
  if (dims == 3) return transition[(r * K + k) * K + j];
  if (j != k) return 0;
  if (dims == 0) return 1;
  return std::exp(transition[dims == 1 ? r : r * K + k]);
}

std::vector<double> formula(const Tensor& transition, const Tensor& entering, const Tensor& local,
                            bool transposed) {
  const std::vector<double> in = values(entering);
  const std::vector<double> a = transition ? values(transition) : std::vector<double>{};
  std::vector<double> out = local ? values(local) : std::vector<double>(in.size());
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < K; ++j) {
        const double factor = transposed ? element_of(a, transition.ndim, r, j, k)
                                         : element_of(a, transition.ndim, r, k, j);
        for (int64_t v = 0; v < V; ++v) {
          out[(r * K + k) * V + v] += factor * in[(r * K + j) * V + v];
        }
      }
    }
  }
  return out;
}

TEST_P(StateCombine, IsTheFormula) {
  const Owned entering = normals(dtype(), {R, K, V}, "entering");
  const Owned local = normals(dtype(), {R, K, V}, "local");
  for (int dims = 0; dims <= 3; ++dims) {
    const Owned a = transition_of(dims, dtype());
    for (const Tensor& added : {Tensor{}, local.view()}) {
      for (const bool transposed : {false, true}) {
        const Owned out(dtype(), {R, K, V});
        state_combine({.out = out,
                       .transition = a,
                       .entering = entering,
                       .local = added,
                       .transposed = transposed},
                      cpu_stream());
        EXPECT_LE(relative_rms(values(out), formula(a, entering, added, transposed)), tolerance())
            << dims << " dims, transposed " << transposed;
      }
    }
  }
}

TEST_P(StateCombine, IsTheSameInPlaceOfTheLocalState) {
  const Owned entering = normals(dtype(), {R, K, V}, "entering");
  const Owned local = normals(dtype(), {R, K, V}, "local");
  for (int dims = 0; dims <= 3; ++dims) {
    const Owned a = transition_of(dims, dtype());
    const Owned out(dtype(), {R, K, V}), in_place = copy_of(local);
    state_combine({.out = out, .transition = a, .entering = entering, .local = local},
                  cpu_stream());
    state_combine({.out = in_place, .transition = a, .entering = entering, .local = in_place},
                  cpu_stream());
    EXPECT_TRUE(same_bits(values(out), values(in_place))) << dims << " dims";
  }
}

/// Any cut of the states and of V: of inputs, output, or both, as views of whole tensors.
TEST_P(StateCombine, DoesNotDependOnBlocksByABit) {
  const Owned entering = normals(dtype(), {R, K, V}, "entering");
  const Owned local = normals(dtype(), {R, K, V}, "local");
  for (int dims = 0; dims <= 3; ++dims) {
    const Owned a = transition_of(dims, dtype());
    for (const bool transposed : {false, true}) {
      const Owned whole(dtype(), {R, K, V});
      state_combine({.out = whole,
                     .transition = a,
                     .entering = entering,
                     .local = local,
                     .transposed = transposed},
                    cpu_stream());
      for (const int64_t states : {1, 2, 4, 6}) {
        for (const int64_t columns : {1, 3, 8, 16, 19}) {
          const Owned out(dtype(), {R, K, V});
          for (int64_t r = 0; r < R; r += states) {
            const int64_t r_end = std::min(R, r + states);
            for (int64_t v = 0; v < V; v += columns) {
              const auto block = [&](const Tensor& t) {
                return t.slice(0, r, r_end).slice(2, v, std::min(V, v + columns));
              };
              const Owned packed = copy_of(block(entering));
              state_combine({.out = block(out),
                             .transition = a.view() ? a.view().slice(0, r, r_end) : Tensor{},
                             .entering = packed,
                             .local = block(local),
                             .transposed = transposed},
                            cpu_stream());
            }
          }
          EXPECT_TRUE(same_bits(values(out), values(whole)))
              << dims << " dims, blocks of " << states << " states and " << columns << " columns";
        }
      }
    }
  }
}

/// A decay of 0 is the start of a document: not even what is no number passes.
TEST_P(StateCombine, AZeroLetsNothingThrough) {
  const Owned local = normals(dtype(), {1, 2, 3}, "local");
  const Owned entering = filled(dtype(), {1, 2, 3}, kInfinity);
  const Owned transitions[] = {filled(dtype(), {1}, -kInfinity),
                               filled(dtype(), {1, 2}, -kInfinity), zeros(dtype(), {1, 2, 2})};
  for (const Owned& transition : transitions) {
    const Owned out(dtype(), {1, 2, 3});
    state_combine({.out = out, .transition = transition, .entering = entering, .local = local},
                  cpu_stream());
    EXPECT_TRUE(same_bits(values(out), values(local))) << transition.view().text();
  }
}

TEST_P(StateCombine, TheIdentityChangesNothing) {
  const Owned entering = normals(dtype(), {R, K, V}, "entering");
  std::vector<double> one;
  for (int64_t i = 0; i < R * K * K; ++i) one.push_back(i / K % K == i % K ? 1 : 0);
  const Owned identities[] = {
      {}, zeros(dtype(), {R}), zeros(dtype(), {R, K}), from_values(dtype(), {R, K, K}, one)};
  for (const Owned& identity : identities) {
    const Owned out(dtype(), {R, K, V});
    state_combine({.out = out, .transition = identity, .entering = entering}, cpu_stream());
    EXPECT_TRUE(same_bits(values(out), values(entering))) << identity.view().text();
  }
}

/// With one dense transition as the state of another, the kernel multiplies matrices.
TEST_P(StateCombine, ComposesDenseTransitions) {
  const Owned later = normals(dtype(), {R, K, K}, "later");
  const Owned earlier = normals(dtype(), {R, K, K}, "earlier");
  const Owned entering = normals(dtype(), {R, K, V}, "entering");
  const Owned both(dtype(), {R, K, K}), once(dtype(), {R, K, V});
  const Owned first(dtype(), {R, K, V}), second(dtype(), {R, K, V});
  state_combine({.out = both, .transition = later, .entering = earlier}, cpu_stream());
  state_combine({.out = once, .transition = both, .entering = entering}, cpu_stream());
  state_combine({.out = first, .transition = earlier, .entering = entering}, cpu_stream());
  state_combine({.out = second, .transition = later, .entering = first}, cpu_stream());
  EXPECT_LE(relative_rms(values(once), values(second)), 4 * tolerance());
}

TEST(StateCombineCost, CountsEveryTermOnce) {
  const Owned state(DType::f32, {R, K, V}), vector(DType::f32, {R, K}),
      dense(DType::f32, {R, K, K});
  const Cost diagonal =
      cost({.out = state, .transition = vector, .entering = state, .local = state});
  EXPECT_EQ(diagonal.flops, 2 * R * K * V);
  EXPECT_EQ(diagonal.bytes, 4 * (3 * R * K * V + R * K));
  const Cost full = cost({.out = state, .transition = dense, .entering = state});
  EXPECT_EQ(full.flops, 2 * R * K * K * V);
  EXPECT_EQ(full.bytes, 4 * (2 * R * K * V + R * K * K));
}

}  // namespace
}  // namespace weft
