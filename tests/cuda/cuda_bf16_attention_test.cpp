// Attention in bf16 by cuDNN, against the CPU twin in f64 on the same numbers: every mask that the
// host knows, blocks as the strategies cut them, shared kv heads, odd lengths, views; what cuDNN
// has plans for; and that whatever it has none for is right all the same.
#include "src/kernels/attention_pieces.hpp"
#include "src/kernels/cuda/attention_scratch.hpp"
#include "src/kernels/cuda/attention_ways.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"
#include "tests/cuda/attention_testing.hpp"

namespace weft {
namespace {

class CudaBf16Attention : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    if (!cuda::has_cudnn()) GTEST_SKIP() << "no cuDNN in this build";
    static const bool shown = [] {
      std::printf("%s\n", cuda::cudnn_version().c_str());
      return true;
    }();
    static_cast<void>(shown);
  }
  void TearDown() override {
    if (!worst_.empty()) std::printf("worst: %s\n", worst_.c_str());
  }

  /// Both passes by cuDNN, whatever attention_forward and _backward choose on this GPU.
  static void run_in_pieces(const DeviceSide& side, const Problem& p,
                            const std::vector<Range>& blocks) {
    side.forward(p, blocks, cuda_test_stream(), &cuda::attention_forward_in_pieces);
    side.backward(p, blocks, cuda_test_stream(), &cuda::attention_backward_in_pieces);
  }

  void expect_near(double error, double bound, const char* what) {
    EXPECT_LE(error, bound) << what;
    if (error / bound > worst_share_) {
      worst_share_ = error / bound;
      worst_ = concat(what, " ", error, " of ", bound, " in ", what_);
    }
  }

  /// Both passes in `blocks` of keys against one block of the CPU's.
  void check(const Problem& p, const std::vector<Range>& blocks, const std::string& what = {}) {
    const Sizes& s = p.s;
    what_ = concat("B ", s.batch, " H ", s.heads, " G ", s.kv_heads, " D ", s.dim, " Tq ",
                   s.queries, " Tk ", s.keys, p.band && p.band->causal ? " causal" : " full",
                   " window ", p.band ? p.band->window : 0, " ", what);
    SCOPED_TRACE(what_);
    const DeviceSide side(p, DType::bf16, DType::f32, &make_device);
    run_in_pieces(side, p, blocks);
    const Result host = on_host(p, {{0, s.keys}});
    // P and the gradients of the scores are rounded to bf16, as are the parts that are added; a
    // log-sum-exp is not.
    const double bound = tolerance_of(DType::bf16), floor = 0.1 * rms(host.dv);
    expect_near(relative_rms(device_values(side.out), host.out), bound, "out");
    expect_near(relative_rms_of_logs(device_values(side.lse), host.lse), 2e-4, "lse");
    expect_near(relative_rms(device_values(side.dq), host.dq, floor), bound, "dq");
    expect_near(relative_rms(device_values(side.dk), host.dk, floor), bound, "dk");
    expect_near(relative_rms(device_values(side.dv), host.dv), bound, "dv");
  }

 private:
  std::string what_, worst_;
  double worst_share_ = 0;
};

/// One document; the queries are the last ones. What the host knows goes with it.
Problem banded(const Sizes& s, bool causal, int64_t window = 0) {
  Problem p = problem(DType::bf16, s, std::vector<int64_t>{}, {causal, window});
  p.band = BandMask{s.keys - s.queries, causal, window};
  return p;
}

TEST_F(CudaBf16Attention, EveryMaskLengthAndWidth) {
  for (const int64_t dim : {64, 128}) {
    for (const auto& [heads, kv_heads] : {std::pair{2, 2}, {4, 2}, {6, 1}}) {
      for (const auto& [queries, keys] :
           {std::pair{256, 256}, {300, 300}, {1, 1}, {65, 65}, {1, 130}, {63, 256}, {128, 384}}) {
        const Sizes s{2, heads, kv_heads, dim, queries, keys};
        check(banded(s, true), {{0, keys}});
        check(banded(s, false), {{0, keys}});
        check(banded(s, true, 50), {{0, keys}});
      }
    }
  }
}

TEST_F(CudaBf16Attention, BlocksInAnyOrder) {
  for (const int64_t window : {0, 1, 40, 128, 200, 1000}) {
    // Keys before the queries, beside them, and after them.
    const Problem p = banded({1, 4, 2, 64, 192, 512}, true, window);
    check(p, {{0, 128}, {128, 256}, {256, 384}, {384, 512}}, "4 blocks");
    check(p, {{320, 512}, {0, 320}}, "own block first");
    check(p, {{375, 512}, {0, 1}, {1, 1}, {64, 375}, {1, 64}}, "odd blocks");
  }
  check(banded({2, 4, 1, 128, 200, 500}, false), {{300, 500}, {0, 300}}, "2 blocks");
}

/// By the way that this GPU takes, which may be another than cuDNN's.
TEST_F(CudaBf16Attention, AMaskThatTheHostKnows) {
  for (const Sizes& s : std::vector<Sizes>{{2, 4, 2, 64, 300, 300}, {1, 2, 1, 128, 128, 384}}) {
    for (const int64_t window : {0, 50}) {
      const Problem p = banded(s, true, window);
      const DeviceSide side(p, DType::bf16, DType::f32, &make_device);
      side.forward(p, {{0, s.keys}}, cuda_test_stream());
      side.backward(p, {{0, s.keys}}, cuda_test_stream());
      const Result host = on_host(p, {{0, s.keys}});
      const double bound = tolerance_of(DType::bf16);
      EXPECT_LE(relative_rms(device_values(side.out), host.out), bound);
      EXPECT_LE(relative_rms(device_values(side.dq), host.dq), bound);
      EXPECT_LE(relative_rms(device_values(side.dk), host.dk), bound);
      EXPECT_LE(relative_rms(device_values(side.dv), host.dv), bound);
    }
  }
}

TEST_F(CudaBf16Attention, WidthsThatItPads) {
  for (const int64_t dim : {8, 24, 32, 40, 96}) {
    check(banded({1, 4, 2, dim, 130, 130}, true), {{0, 130}});
  }
}

TEST_F(CudaBf16Attention, WhatItHasNoPlanFor) {
  check(banded({1, 2, 1, 33, 70, 70}, true), {{0, 70}}, "odd heads");  // rows of 66 bytes
  check(banded({2, 2, 1, 4, 70, 70}, false), {{0, 70}}, "narrow heads");
  check(banded({1, 2, 1, 64, 0, 10}, true), {{0, 10}}, "no query");
  check(banded({0, 2, 1, 64, 10, 10}, true), {{0, 10}}, "no sequence");
  check(banded({1, 2, 1, 64, 10, 10}, true), {{0, 0}, {0, 10}}, "no key");
}

/// Whose probabilities are 0, and 1 at one key, some -100 below 0: with an lse below -88 a key past
/// the last one that counted as a score of 0 would be infinite.
TEST_F(CudaBf16Attention, VerySmallLogSumExps) {
  for (const int64_t keys : {64, 192, 200, 256}) {
    Problem p = banded({1, 2, 1, 64, keys, keys}, true);
    for (size_t i = 0; i < p.q.size(); ++i) p.q[i] = std::abs(p.q[i]);
    for (size_t i = 0; i < p.k.size(); ++i) p.k[i] = -24 + p.k[i] / 4;
    p.q = rounded(DType::bf16, p.q), p.k = rounded(DType::bf16, p.k);
    const DeviceSide side(p, DType::bf16, DType::f32, &make_device);
    run_in_pieces(side, p, {{0, keys}});
    const Result host = on_host(p, {{0, keys}});
    EXPECT_LT(*std::min_element(host.lse.begin(), host.lse.end()), -100);
    SCOPED_TRACE(concat(keys, " keys"));
    EXPECT_LE(relative_rms(device_values(side.lse), host.lse), 1e-4);
    // A score of 150 rounds by 1e-5 and more: only what must be finite and near is asked.
    EXPECT_LE(relative_rms(device_values(side.out), host.out), 2e-2);
    EXPECT_LE(relative_rms(device_values(side.dv), host.dv), 2e-2);
    EXPECT_LE(relative_rms(device_values(side.dk), host.dk, 0.1), 5e-2);
    EXPECT_LE(relative_rms(device_values(side.dq), host.dq, 1.0), 5e-2);
  }
}

TEST_F(CudaBf16Attention, SmallGradients) {  // as of a mean over a million tokens
  Problem p = banded({1, 2, 1, 64, 200, 200}, true);
  for (double& x : p.dout) x *= 0x1p-60;  // exact
  check(p, {{0, 200}}, "gradients of 1e-18");
}

/// Of a block that cuDNN would take: what own kernels make of its intervals, to the bit.
TEST_F(CudaBf16Attention, DeterministicGradientsAreOfOwnKernels) {
  const Problem p = banded({2, 4, 2, 64, 700, 700}, true);
  const auto gradients = [&](bool deterministic, bool band) {
    const DeviceSide side(p, DType::bf16, DType::f32, &make_device);
    Stream& stream = cuda_test_stream();
    side.forward(p, {{0, 700}}, stream);
    AttentionBlock block = side.block(p, {0, 700});
    block.deterministic = deterministic;
    if (!band) block.band.reset();
    attention_delta({side.delta, side.out, side.dout}, stream);
    attention_backward(
        {side.dq, side.dk, side.dv, side.scratch, side.dout, side.lse, side.delta, block}, stream);
    return std::vector{device_values(side.dq), device_values(side.dk), device_values(side.dv)};
  };
  const auto own = gradients(false, /*band=*/false), got = gradients(true, /*band=*/true);
  const auto by_cudnn = gradients(false, /*band=*/true);
  for (size_t i = 0; i < own.size(); ++i) {
    EXPECT_TRUE(same_bits(got[i], own[i])) << i;
    EXPECT_FALSE(same_bits(by_cudnn[i], own[i])) << i;  // another way, rounded elsewhere
  }
}

/// The heads of a fused projection, token-major batches, a slice of rows in between.
TEST_F(CudaBf16Attention, ReadsAndWritesViews) {
  const int64_t B = 2, T = 160, H = 4, G = 2, D = 64;
  const Problem p = banded({B, H, G, D, T, T}, true);
  // [T, B, 2 H + 2 G, D]: q, k, v, dout of a token side by side, as an all-to-all leaves them.
  Values all(T * B * (2 * H + 2 * G) * D);
  const auto put = [&](const Values& x, int64_t heads, int64_t first) {
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t i = 0; i < heads * D; ++i) {
          all[(t * B + b) * (2 * H + 2 * G) * D + first * D + i] = x[(b * T + t) * heads * D + i];
        }
      }
    }
  };
  put(p.q, H, 0), put(p.k, G, H), put(p.v, G, H + G), put(p.dout, H, H + 2 * G);
  const OnDevice fused(DType::bf16, {T, B, 2 * H + 2 * G, D}, all);
  const auto heads = [&](int64_t begin, int64_t end) {
    Tensor t = fused.view().slice(2, begin, end);
    std::swap(t.shape[0], t.shape[1]);
    std::swap(t.stride[0], t.stride[1]);
    return t;
  };
  const DeviceSide side(p, DType::bf16, DType::f32, &make_device);
  AttentionBlock block = side.block(p, {0, T});
  block.q = heads(0, H), block.k = heads(H, H + G), block.v = heads(H + G, H + 2 * G);
  const Tensor dout = heads(H + 2 * G, 2 * H + 2 * G);
  Stream& stream = cuda_test_stream();
  cuda::attention_forward_in_pieces({side.out, side.lse, side.scratch, block}, stream);
  attention_delta({side.delta, side.out, dout}, stream);
  // A kv head at a time, through views of the gradients, lse and delta.
  for (int64_t g = 0; g < G; ++g) {
    const int64_t first = g * (H / G), last = first + H / G;
    AttentionBlock part = block;
    part.q = block.q.slice(2, first, last);
    part.k = block.k.slice(2, g, g + 1), part.v = block.v.slice(2, g, g + 1);
    cuda::attention_backward_in_pieces(
        {Tensor(side.dq).slice(2, first, last), Tensor(side.dk).slice(2, g, g + 1),
         Tensor(side.dv).slice(2, g, g + 1), side.scratch, dout.slice(2, first, last),
         Tensor(side.lse).slice(1, first, last), Tensor(side.delta).slice(1, first, last), part},
        stream);
  }
  const Result host = on_host(p, {{0, T}});
  const double bound = tolerance_of(DType::bf16);
  EXPECT_LE(relative_rms(device_values(side.out), host.out), bound);
  EXPECT_LE(relative_rms(device_values(side.dq), host.dq), bound);
  EXPECT_LE(relative_rms(device_values(side.dk), host.dk), bound);
  EXPECT_LE(relative_rms(device_values(side.dv), host.dv), bound);
}

/// An output's stand-in has the row sums with dout that it was made from, and is no longer.
TEST_F(CudaBf16Attention, StandInHasTheDelta) {
  const int64_t B = 2, T = 70, H = 3, D = 64;
  for (const double scale : {1.0, 0x1p-100}) {
    const Values out = random_values(DType::f32, B * T * H * D, "out");
    Values gradient = random_values(DType::bf16, out.size(), "dout", 1);
    for (double& x : gradient) x *= scale;
    std::fill_n(gradient.begin(), D, 0.0);  // a row without gradient
    Values delta(B * H * T), length(B * H * T), lse(B * H * T, 0.5);
    lse[1] = -kInfinity;
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t h = 0; h < H; ++h) {
          for (int64_t d = 0; d < D; ++d) {
            const int64_t i = ((b * T + t) * H + h) * D + d;
            delta[(b * H + h) * T + t] += out[i] * gradient[i];
            length[(b * H + h) * T + t] += out[i] * out[i];
          }
        }
      }
    }
    const OnDevice dout(DType::bf16, {B, T, H, D}, gradient), stand_in(DType::bf16, {B, T, H, D});
    const OnDevice rows(DType::f32, {B, H, T}, lse), packed(DType::f32, {B, H, T});
    const OnDevice deltas(DType::f32, {B, H, T}, delta), lengths(DType::i32, {2 * B});
    cuda::attention_stand_in({.out = stand_in,
                              .packed_lse = packed,
                              .lengths = lengths,
                              .dout = dout,
                              .lse = rows,
                              .delta = deltas,
                              .keys = 99},
                             cuda_test_stream());
    const Values got = device_values(stand_in), got_lse = device_values(packed);
    EXPECT_EQ(device_values(lengths), (Values{double(T), double(T), 99, 99}));
    EXPECT_EQ(got_lse[1], kInfinity);
    EXPECT_EQ(got_lse[2], 0.5);
    Values sums(delta.size());
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t h = 0; h < H; ++h) {
          double squares = 0;
          for (int64_t d = 0; d < D; ++d) {
            const int64_t i = ((b * T + t) * H + h) * D + d;
            sums[(b * H + h) * T + t] += got[i] * gradient[i];
            squares += got[i] * got[i];
          }
          EXPECT_LE(squares, 1.01 * length[(b * H + h) * T + t]);
        }
      }
    }
    EXPECT_LE(relative_rms(sums, delta), 1e-3);
  }
}

/// Says what this cuDNN takes: own kernels are right, and slower.
TEST_F(CudaBf16Attention, HasPlansInTheWorkspaceThatIsPlanned) {
  using Mask = AttentionPiece::Mask;
  struct Case {
    const char* what;
    Mask mask;
    int64_t window, queries, keys;
  };
  for (const Case& c : std::vector<Case>{{"full", Mask::full, 0, 512, 512},
                                         {"full, odd", Mask::full, 0, 500, 333},
                                         {"causal", Mask::causal, 0, 512, 512},
                                         {"causal, odd", Mask::causal, 0, 333, 333},
                                         {"causal, longer keys", Mask::causal, 0, 256, 1024},
                                         {"causal, odd longer keys", Mask::causal, 0, 100, 1001},
                                         {"window", Mask::causal, 128, 512, 512},
                                         {"window, longer keys", Mask::causal, 100, 256, 300},
                                         {"upper", Mask::upper, 0, 128, 128},
                                         {"upper, long", Mask::upper, 0, 2048, 2048}}) {
    for (const auto& [heads, kv_heads, dim] : {std::tuple{32, 8, 64}, {16, 16, 128}}) {
      const AttentionSizes sizes{1, c.queries, c.keys, heads, kv_heads, dim};
      const auto tensor = [&](DType dtype, const std::vector<int64_t>& shape) {
        int64_t n = 1;
        for (const int64_t size : shape) n *= size;
        return OnDevice(dtype, shape, Values(n, 0.0));
      };
      const std::vector<int64_t> q_shape{1, c.queries, heads, dim},
          k_shape{1, c.keys, kv_heads, dim};
      const OnDevice q = tensor(DType::bf16, q_shape), k = tensor(DType::bf16, k_shape),
                     v = tensor(DType::bf16, k_shape), out = tensor(DType::bf16, q_shape),
                     dout = tensor(DType::bf16, q_shape), dq = tensor(DType::bf16, q_shape),
                     dk = tensor(DType::bf16, k_shape), dv = tensor(DType::bf16, k_shape),
                     lse = tensor(DType::f32, {1, heads, c.queries});
      const OnDevice lengths(DType::i32, {2}, {double(c.queries), double(c.keys)});
      const OnDevice workspace(DType::u8, {cuda::AttentionScratch(nullptr, sizes).workspace_bytes});
      const cuda::CudnnOperands operands{
          .q = q, .k = k, .v = v, .scale = 0.125, .mask = c.mask, .window = c.window};
      Stream& stream = cuda_test_stream();
      const std::string forward =
          cuda::cudnn_attention_forward(operands, out, lse, workspace, stream);
      const std::string backward = cuda::cudnn_attention_backward(
          operands,
          {.dq = dq, .dk = dk, .dv = dv, .out = out, .dout = dout, .lse = lse, .lengths = lengths},
          workspace, stream);
      EXPECT_EQ(forward, "") << c.what << ", " << heads << " heads of " << dim;
      EXPECT_EQ(backward, "") << c.what << ", " << heads << " heads of " << dim;
      stream.record().wait();
    }
  }
}

}  // namespace
}  // namespace weft
