// The kernel of the state scans on the GPU, and the stream that they run on.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/state_combine.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

class CudaStateCombine : public CudaTest {};

struct Shape {
  int64_t R, K, V;
  std::vector<int64_t> state() const { return {R, K, V}; }
  int64_t numel() const { return R * K * V; }
};
constexpr Shape kShapes[] = {{1, 1, 1}, {6, 5, 19}, {3, 64, 128}, {2, 129, 33}};

/// A transition of 0 to 3 dims.
std::vector<int64_t> transition_shape(int dims, const Shape& s) {
  switch (dims) {
    case 1:
      return {s.R};
    case 2:
      return {s.R, s.K};
    case 3:
      return {s.R, s.K, s.K};
    default:
      return {};
  }
}

Values transition_values(int dims, const Shape& s) {
  int64_t n = 1;
  for (const int64_t d : transition_shape(dims, s)) n *= d;
  Values entries = random_values(DType::f32, n, "transition",
                                 dims == 3 ? 1 / std::sqrt(static_cast<double>(s.K)) : 1.0);
  if (dims == 3) return entries;
  for (int64_t i = 0; i < n; ++i) entries[i] = i % 5 == 1 ? -kInfinity : -std::abs(entries[i]);
  return entries;
}

/// The CPU twin in `dtype`.
Values on_the_cpu(DType dtype, int dims, const Shape& s, const Values& a, const Values& entering,
                  const Values& local, bool transposed) {
  const Owned out(dtype, s.state());
  const Owned transition = dims == 0 ? Owned() : from_values(dtype, transition_shape(dims, s), a);
  state_combine({.out = out,
                 .transition = transition,
                 .entering = from_values(dtype, s.state(), entering),
                 .local = from_values(dtype, s.state(), local),
                 .transposed = transposed},
                cpu_stream());
  return values(out);
}

TEST_F(CudaStateCombine, IsTheCpuTwinWhateverTheBlocks) {
  for (const Shape& s : kShapes) {
    const Values entering = random_values(DType::f32, s.numel(), "entering");
    const Values local = random_values(DType::f32, s.numel(), "local");
    for (int dims = 0; dims <= 3; ++dims) {
      const Values a = transition_values(dims, s);
      for (const bool transposed : {false, true}) {
        SCOPED_TRACE(concat(dims, " dims, ", s.R, " x ", s.K, " x ", s.V, ", ", transposed));
        const OnDevice in(DType::f32, s.state(), entering), add(DType::f32, s.state(), local);
        const OnDevice held(DType::f32,
                            dims == 0 ? std::vector<int64_t>{1} : transition_shape(dims, s),
                            dims == 0 ? Values{NAN} : a);
        const Tensor transition = dims == 0 ? Tensor{} : held.view();
        const auto run = [&](const Tensor& out, int64_t states, int64_t columns) {
          for (int64_t r = 0; r < s.R; r += states) {
            const int64_t end = std::min(s.R, r + states);
            for (int64_t v = 0; v < s.V; v += columns) {
              const auto block = [&](const Tensor& t) {
                return t.slice(0, r, end).slice(2, v, std::min(s.V, v + columns));
              };
              state_combine({.out = block(out),
                             .transition = transition ? transition.slice(0, r, end) : transition,
                             .entering = block(in),
                             .local = block(add),
                             .transposed = transposed},
                            cuda_test_stream());
            }
          }
          return device_values(out);
        };
        const OnDevice whole(DType::f32, s.state()), cut(DType::f32, s.state());
        const Values got = run(whole, s.R, s.V);
        EXPECT_TRUE(same_bits(got, run(cut, 2, 7)));
        EXPECT_TRUE(same_bits(got, run(add, s.R, s.V)));  // in place of the local state
        EXPECT_LE(
            relative_rms(got, on_the_cpu(DType::f64, dims, s, a, entering, local, transposed)),
            1e-6);
        if (dims == 0 || dims == 3) {  // without an exponential to the bit
          EXPECT_TRUE(
              same_bits(got, on_the_cpu(DType::f32, dims, s, a, entering, local, transposed)));
        }
      }
    }
  }
}

TEST_F(CudaStateCombine, ADecayOfZeroLetsNothingThrough) {
  const Values local = random_values(DType::f32, 6, "local");
  const OnDevice in(DType::f32, {1, 2, 3}, Values(6, NAN)), add(DType::f32, {1, 2, 3}, local);
  const OnDevice out(DType::f32, {1, 2, 3}), decay(DType::f32, {1}, {-kInfinity});
  state_combine({.out = out, .transition = decay, .entering = in, .local = add},
                cuda_test_stream());
  EXPECT_TRUE(same_bits(device_values(out), local));
}

/// What a scan does: a kernel beside compute, between two events.
TEST_F(CudaStateCombine, RunsOnTheStreamBesideCompute) {
  Stream& compute = cuda_test_stream();
  const auto beside = compute.make_beside("beside");
  EXPECT_EQ(beside->device(), Device::cuda);
  const Values one = random_values(DType::f32, 1 << 20, "state");
  const OnDevice a(DType::f32, {64, 128, 128}, one), b(DType::f32, {64, 128, 128});
  const OnDevice c(DType::f32, {64, 128, 128});
  state_combine({.out = b, .transition = {}, .entering = a, .local = a}, compute);
  beside->wait(compute.record());
  state_combine({.out = c, .transition = {}, .entering = b, .local = a}, *beside);
  compute.wait(beside->record());
  Values expected = one;
  for (double& x : expected)
    x = static_cast<float>(static_cast<float>(x + x) + static_cast<float>(x));
  EXPECT_TRUE(same_bits(device_values(c), expected));
}

}  // namespace
}  // namespace weft
