// CUDA twins of what strategies need beside the attention of one block: softmax over rows that
// exist, merges of parts, and rows that are views. Against the CPU twins in f64.
#include <gtest/gtest.h>

#include "src/kernels/attention.hpp"
#include "src/kernels/softmax.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

class CudaScoreRows : public CudaTest {};

/// Intervals of [B, T] queries over N keys: of every length, none and too long ones included.
std::pair<Values, Values> intervals(int64_t rows, int64_t keys) {
  std::pair<Values, Values> out;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t begin = i % 3 == 0 ? -2 : i * 7 % (keys + 1);
    out.first.push_back(static_cast<double>(begin));
    out.second.push_back(static_cast<double>(i % 5 == 4 ? begin : begin + 1 + i * 13 % (keys + 9)));
  }
  return out;
}

struct Shape {
  int64_t B, H, T, N;
  std::vector<int64_t> scores() const { return {B, H, T, N}; }
  std::vector<int64_t> rows() const { return {B, H, T}; }
  int64_t numel() const { return B * H * T * N; }
};
constexpr Shape kShapes[] = {{1, 1, 1, 1}, {2, 3, 7, 40}, {1, 2, 33, 1000}, {2, 1, 5, 4099}};

TEST_F(CudaScoreRows, SoftmaxAndItsGradientAreTheCpuTwins) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(concat(s.T, " x ", s.N));
    const auto [from, to] = intervals(s.B * s.T, s.N);
    const Values raw = random_values(DType::f32, s.numel(), "scores", 3.0);
    const Values dp = random_values(DType::f32, s.numel(), "dprobs");
    const Values delta = random_values(DType::f32, s.B * s.H * s.T, "delta");
    const Owned host_from = from_values(DType::i64, {s.B, s.T}, from);
    const Owned host_to = from_values(DType::i64, {s.B, s.T}, to);
    const Owned p = f64(s.scores(), raw), again = f64(s.scores(), raw), ds = f64(s.scores(), dp);
    const Owned lse(DType::f64, s.rows());
    softmax_forward({.scores = p, .lse = lse, .key_begin = host_from, .key_end = host_to},
                    cpu_stream());
    softmax_backward({.probs = again,
                      .dscores = ds,
                      .lse = lse,
                      .delta = f64(s.rows(), delta),
                      .key_begin = host_from,
                      .key_end = host_to},
                     cpu_stream());
    const std::vector<Values> got = twice([&] {
      const OnDevice begin(DType::i64, {s.B, s.T}, from), end(DType::i64, {s.B, s.T}, to);
      const OnDevice probs(DType::f32, s.scores(), raw), scores(DType::f32, s.scores(), raw);
      const OnDevice dscores(DType::f32, s.scores(), dp), rows(DType::f32, s.rows());
      const OnDevice deltas(DType::f32, s.rows(), delta);
      Stream& stream = cuda_test_stream();
      softmax_forward({.scores = probs, .lse = rows, .key_begin = begin, .key_end = end}, stream);
      const int64_t cut = s.N / 3;  // in two blocks of columns
      for (const auto& [first, last] : {std::pair{int64_t{0}, cut}, {cut, s.N}}) {
        softmax_backward({.probs = scores.view().slice(3, first, last),
                          .dscores = dscores.view().slice(3, first, last),
                          .lse = rows,
                          .delta = deltas,
                          .key_begin = begin,
                          .key_end = end,
                          .first_key = first},
                         stream);
      }
      return std::vector<Values>{device_values(probs), device_values(rows), device_values(scores),
                                 device_values(dscores)};
    });
    expect_near(got[0], p, 1e-5, "probabilities");
    EXPECT_LE(relative_rms_of_logs(got[1], values(lse)), 1e-5);
    expect_near(got[2], again, 1e-5, "probabilities again", 1e-30);
    expect_near(got[3], ds, 1e-5, "gradient", 1e-30);
  }
}

TEST_F(CudaScoreRows, PartsMergeAsOnTheCpu) {
  const int64_t B = 2, T = 37, H = 3;
  for (const int64_t D : {8, 64, 128, 200}) {
    const std::vector<int64_t> heads = {B, T, H, D}, rows = {B, H, T};
    Values lse = random_values(DType::f32, B * H * T, "lse", 5.0);
    Values part_lse = random_values(DType::f32, B * H * T, "part lse", 5.0);
    for (size_t i = 0; i < lse.size(); ++i) {
      if (i % 7 == 0) lse[i] = -kInfinity;
      if (i % 5 == 0) part_lse[i] = -kInfinity;
    }
    const Values out = random_values(DType::f32, B * T * H * D, "out");
    const Values part = random_values(DType::f32, B * T * H * D, "part");
    const Owned host_out = f64(heads, out), host_lse = f64(rows, lse);
    attention_merge({.out = host_out,
                     .lse = host_lse,
                     .part_out = f64(heads, part),
                     .part_lse = f64(rows, part_lse)},
                    cpu_stream());
    const std::vector<Values> got = twice([&] {
      const OnDevice total(DType::f32, heads, out), numbers(DType::f32, rows, lse);
      const OnDevice other(DType::f32, heads, part), others(DType::f32, rows, part_lse);
      attention_merge({.out = total, .lse = numbers, .part_out = other, .part_lse = others},
                      cuda_test_stream());
      return std::vector<Values>{device_values(total), device_values(numbers)};
    });
    expect_near(got[0], host_out, 1e-5, "out");
    EXPECT_LE(relative_rms_of_logs(got[1], values(host_lse)), 1e-5);
  }
}

/// Every kv head's queries in two parts, through views, give the whole's numbers.
TEST_F(CudaScoreRows, HeadsAndQueriesMayBeViews) {
  const int64_t B = 2, T = 150, H = 4, G = 2, D = 64;
  const std::vector<int64_t> q_shape = {B, T, H, D}, k_shape = {B, T, G, D}, rows = {B, H, T};
  const auto inputs = [&](const char* name, const std::vector<int64_t>& shape) {
    return OnDevice(DType::f32, shape,
                    random_values(DType::f32, shape[1] * B * shape[2] * D, name));
  };
  const OnDevice q = inputs("q", q_shape), k = inputs("k", k_shape), v = inputs("v", k_shape);
  const OnDevice dout = inputs("dout", q_shape);
  const std::vector<SegmentMap> samples(B, SegmentMap(T, {0, 40, 41}, true));
  const KeyIntervals keys = key_intervals(samples, 0, T);
  const OnDevice from(DType::i64, {B, T}, values(keys.begin)),
      to(DType::i64, {B, T}, values(keys.end));
  const OnDevice tiles(DType::u8, {attention_scratch_bytes(DType::f32, D)});
  struct Part {
    int64_t begin, end, g_begin, g_end;
  };
  const auto run = [&](const std::vector<Part>& parts) {
    const OnDevice out = device_zeros(DType::f32, q_shape), dq = device_zeros(DType::f32, q_shape);
    const OnDevice dk = device_zeros(DType::f32, k_shape), dv = device_zeros(DType::f32, k_shape);
    const OnDevice lse(DType::f32, rows, Values(B * H * T, -kInfinity)), delta(DType::f32, rows);
    Stream& stream = cuda_test_stream();
    for (const auto& [begin, end, g_begin, g_end] : parts) {
      const auto heads = [&, b = begin, e = end, x = g_begin, y = g_end](const Tensor& t) {
        return t.slice(1, b, e).slice(2, x * (H / G), y * (H / G));
      };
      const auto numbers = [&, b = begin, e = end, x = g_begin, y = g_end](const Tensor& t) {
        return t.slice(2, b, e).slice(1, x * (H / G), y * (H / G));
      };
      const auto kv = [&, x = g_begin, y = g_end](const Tensor& t) { return t.slice(2, x, y); };
      const AttentionBlock block{.q = heads(q),
                                 .k = kv(k),
                                 .v = kv(v),
                                 .key_begin = from.view().slice(1, begin, end),
                                 .key_end = to.view().slice(1, begin, end),
                                 .scale = 0.125};
      attention_forward({heads(out), numbers(lse), tiles, block}, stream);
      attention_delta({numbers(delta), heads(out), heads(dout)}, stream);
      attention_backward(
          {heads(dq), kv(dk), kv(dv), tiles, heads(dout), numbers(lse), numbers(delta), block},
          stream);
    }
    return std::vector<Values>{device_values(out), device_values(lse), device_values(dq),
                               device_values(dk), device_values(dv)};
  };
  const auto whole = run({{0, T, 0, G}});
  const auto parts = run({{0, 70, 1, 2}, {70, T, 0, 1}, {70, T, 1, 2}, {0, 70, 0, 1}});
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_LE(relative_rms(parts[i], whole[i]), 1e-5) << i;
}

}  // namespace
}  // namespace weft
