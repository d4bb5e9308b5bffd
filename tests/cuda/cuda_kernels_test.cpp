// Every CUDA kernel but attention and the matrix product against its CPU twin in f64, on fresh
// numbers. The twin gets the inputs as the GPU's dtype rounds them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/rope.hpp"
#include "tests/cross_entropy_testing.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

using Shape = std::vector<int64_t>;

class CudaKernels : public CudaDtypeTest {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaKernels, testing::Values(DType::f32, DType::bf16), dtype_name);

constexpr int64_t kLongShard = 131072;  // tokens

/// Rows and widths: none, odd, whole packs, wider than what a thread holds, of a long shard.
const std::vector<Shape> kShapes = {{0, 64},    {1, 1},     {1, 8},          {3, 7},     {37, 64},
                                    {129, 100}, {257, 768}, {2100, 256},     {70, 2048}, {33, 8192},
                                    {9, 12289}, {5, 20480}, {kLongShard, 24}};

TEST_P(CudaKernels, RmsNorm) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t rows = shape[0], width = shape[1], n = rows * width;
    const Values x = random_values(dtype(), n, "x"), w = random_values(dtype(), width, "weight");
    const Values dy = random_values(dtype(), n, "dy"), dx = random_values(dtype(), n, "dx");
    const Values dw = random_values(dtype(), width, "dw");
    const Owned hx = f64(shape, x), hw = f64({width}, w), hy(DType::f64, shape);
    const Owned hrstd(DType::f64, {rows}), hdy = f64(shape, dy), hdx = f64(shape, dx);
    const Owned hdw = f64({width}, dw);
    rmsnorm_forward({hy, hrstd, hx, hw, 1e-5}, cpu_stream());
    rmsnorm_backward({hdx, hdw, hdy, hx, hrstd, hw}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gx(dtype(), shape, x), gw(dtype(), {width}, w), gy(dtype(), shape);
      const OnDevice grstd(DType::f32, {rows}), gdy(dtype(), shape, dy), gdx(dtype(), shape, dx);
      const OnDevice gdw(DType::f32, {width}, dw);
      rmsnorm_forward({gy, grstd, gx, gw, 1e-5}, cuda_test_stream());
      rmsnorm_backward({gdx, gdw, gdy, gx, grstd, gw}, cuda_test_stream());
      return std::vector{device_values(gy), device_values(grstd), device_values(gdx),
                         device_values(gdw)};
    });
    expect_near(got[0], hy, tolerance_of(dtype()), "y");
    expect_near(got[1], hrstd, 1e-5, "rstd");
    // What they add to is of order one; a lone sum may cancel it.
    expect_near(got[2], hdx, tolerance_of(dtype()), "dx", 0.3);
    expect_near(got[3], hdw, 1e-5, "dweight", 0.3);
  }
}

TEST_P(CudaKernels, RmsNormOfRowsWithGaps) {
  const Values x = random_values(dtype(), 40 * 80, "gaps"), w = random_values(dtype(), 64, "w");
  const Owned hx = f64({40, 80}, x), hy(DType::f64, {40, 64}), hrstd(DType::f64, {40});
  const Owned hw = f64({64}, w);
  const OnDevice gx(dtype(), {40, 80}, x), gy(dtype(), {40, 70}), grstd(DType::f32, {40});
  const OnDevice gw(dtype(), {64}, w);
  for (const int64_t from : {0, 3, 16}) {
    const Tensor target = gy.view().slice(1, 2, 66);
    rmsnorm_forward({hy, hrstd, hx.view().slice(1, from, from + 64), hw}, cpu_stream());
    rmsnorm_forward({target, grstd, gx.view().slice(1, from, from + 64), gw}, cuda_test_stream());
    expect_near(device_values(target), hy, tolerance_of(dtype()), "y");
  }
  EXPECT_TRUE(std::isnan(device_values(gy.view().slice(1, 66, 67))[0])) << "written beside y";
}

TEST_P(CudaKernels, SwigluAddAndFill) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t n = shape[0] * shape[1];
    const Values gate = random_values(dtype(), n, "gate", 3), up = random_values(dtype(), n, "up");
    const Values dy = random_values(dtype(), n, "dy");
    const Owned hg = f64(shape, gate), hu = f64(shape, up), hd = f64(shape, dy);
    const Owned hy(DType::f64, shape), hdg(DType::f64, shape), hdu(DType::f64, shape);
    const Owned hs(DType::f64, shape);
    swiglu_backward({hdg, hdu, hy, hd, hg, hu}, cpu_stream());
    add({hs, hg, hu}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gg(dtype(), shape, gate), gu(dtype(), shape, up), gd(dtype(), shape, dy);
      const OnDevice gy(dtype(), shape), again(dtype(), shape), gdg(dtype(), shape);
      const OnDevice gdu(dtype(), shape), constant(dtype(), shape);
      swiglu_forward({gy, gg, gu}, cuda_test_stream());
      swiglu_backward({gdg, gdu, again, gd, gg, gu}, cuda_test_stream());
      fill({constant, 1.5}, cuda_test_stream());
      add({gg, gg, gu}, cuda_test_stream());  // in place
      return std::vector{device_values(gy),  device_values(again), device_values(gdg),
                         device_values(gdu), device_values(gg),    device_values(constant)};
    });
    EXPECT_TRUE(same_bits(got[0], got[1])) << "backward's y is not forward's";
    expect_near(got[0], hy, tolerance_of(dtype()), "y");
    expect_near(got[2], hdg, tolerance_of(dtype()), "dgate");
    expect_near(got[3], hdu, tolerance_of(dtype()), "dup");
    expect_near(got[4], hs, tolerance_of(dtype()), "sum");
    EXPECT_EQ(got[5], Values(n, 1.5));
  }
}

TEST_P(CudaKernels, SwigluOfLargeGates) {
  const Values gate = {-1e4, -200, -89, -88, -30, 30, 88, 200, 1e4, 0}, up(10, 2.0), dy(10, 1.0);
  const OnDevice g(dtype(), {10}, gate), u(dtype(), {10}, up), d(dtype(), {10}, dy);
  const OnDevice y(dtype(), {10}), dg(dtype(), {10}), du(dtype(), {10});
  swiglu_backward({dg, du, y, d, g, u}, cuda_test_stream());
  for (const Values& v : {device_values(y), device_values(dg), device_values(du)}) {
    for (const double x : v) EXPECT_TRUE(std::isfinite(x));
  }
}

TEST_F(CudaTest, SumsInF64) {
  const OnDevice a(DType::f64, {3}, {1, 2, 1e-12}), b(DType::f64, {3}, {1e-12, 5, 1});
  const OnDevice y(DType::f64, {3});
  add({y, a, b}, cuda_test_stream());
  EXPECT_EQ(device_values(y), (Values{1 + 1e-12, 7, 1 + 1e-12}));
  fill({y, 0.1}, cuda_test_stream());
  EXPECT_EQ(device_values(y), Values(3, 0.1));
  fill({y, 0}, cuda_test_stream());
  EXPECT_EQ(device_values(y), Values(3, 0.0));
}

// ---- Copies

Tensor swapped(Tensor t, int a, int b) {
  std::swap(t.shape[a], t.shape[b]);
  std::swap(t.stride[a], t.stride[b]);
  return t;
}

class CudaCopy : public CudaDtypeTest {
 protected:
  void expect_copied(const Tensor& y, const Tensor& x) {
    copy({.y = y, .x = x}, cuda_test_stream());
    EXPECT_EQ(device_values(y), device_values(x)) << y.text();
  }
  OnDevice numbered(const Shape& shape) {  // whole numbers below 256: bf16 holds them
    OnDevice t(dtype(), shape);
    Values numbers(t.view().numel());
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i % 251);
    t.assign_values(numbers);
    return t;
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaCopy,
                         testing::Values(DType::f64, DType::f32, DType::bf16, DType::i32),
                         dtype_name);

TEST_P(CudaCopy, TakesAnyStridesOnEitherSide) {
  for (const int64_t inner : {1, 3, 4, 16, 64}) {
    SCOPED_TRACE(concat("inner ", inner));
    const OnDevice x = numbered({3, 5, 2, inner});
    const Tensor last = x.view().slice(1, 2, 5);
    const OnDevice packed(dtype(), {3, 3, 2, inner}), turned(dtype(), {5, 3, 2, inner});
    expect_copied(packed, last);
    expect_copied(swapped(packed, 0, 1), swapped(last, 1, 0));
    expect_copied(turned, swapped(x, 0, 1));
    expect_copied(swapped(turned, 0, 1), x);
    expect_copied(OnDevice(dtype(), {3, 5, 2, inner}), x);
    expect_copied(OnDevice(dtype(), {3, 5, inner, 2}), swapped(x, 2, 3));  // no run at all
    expect_copied(OnDevice(dtype(), {3, 0, 2, inner}), x.view().slice(1, 3, 3));
    expect_copied(OnDevice(dtype(), {1, 1, 1, inner}),
                  x.view().slice(0, 1, 2).slice(1, 1, 2).slice(2, 1, 2));
  }
}

TEST_P(CudaCopy, WritesNothingBesideTheTarget) {
  const OnDevice x = numbered({2, 3, 4}), y = device_zeros(dtype(), {2, 7, 6});
  expect_copied(y.view().slice(1, 2, 5).slice(2, 1, 5), x);
  const Values all = device_values(y);
  EXPECT_EQ(std::count(all.begin(), all.end(), 0.0), 2 * 7 * 6 - 2 * 3 * 4 + 1);
}

// ---- Embedding

TEST_P(CudaKernels, Embedding) {
  struct Case {
    int64_t rows, width, vocab;
  };
  for (const auto& [rows, width, vocab] : {Case{0, 64, 10},
                                           {1, 3, 1},
                                           {7, 64, 10},
                                           {1000, 100, 3},
                                           {3000, 256, 5000},
                                           {513, 2049, 40},
                                           {4096, 512, 2},
                                           {kLongShard, 16, 300}}) {
    SCOPED_TRACE(concat(rows, " x ", width, " of ", vocab));
    const Values tokens = random_integers(rows, "tokens", vocab);
    const Values table = random_values(dtype(), vocab * width, "table");
    const Values dy = random_values(dtype(), rows * width, "dy");
    const Values dtable = random_values(DType::f32, vocab * width, "dtable");
    const Owned ht = from_values(DType::i32, {rows}, tokens), hy(DType::f64, {rows, width});
    const Owned hd = f64({vocab, width}, dtable);
    embedding_forward({hy, f64({vocab, width}, table), ht, 0, vocab}, cpu_stream());
    embedding_backward({hd, f64({rows, width}, dy), ht}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gt(DType::i32, {rows}, tokens), gtable(dtype(), {vocab, width}, table);
      const OnDevice gy(dtype(), {rows, width}), gdy(dtype(), {rows, width}, dy);
      const OnDevice gd(DType::f32, {vocab, width}, dtable);
      embedding_forward({gy, gtable, gt, 0, vocab}, cuda_test_stream());
      embedding_backward({gd, gdy, gt}, cuda_test_stream());
      return std::vector{device_values(gy), device_values(gd)};
    });
    EXPECT_EQ(got[0], values(hy));
    expect_near(got[1], hd, 1e-5, "dtable");
    // Cut over two ranks: the rows of either and zeros, and the bits of the whole's gradient.
    const int64_t cut = vocab / 3;
    const OnDevice gt(DType::i32, {rows}, tokens), gtable(dtype(), {vocab, width}, table);
    const OnDevice gdy(dtype(), {rows, width}, dy), gd(DType::f32, {vocab, width}, dtable);
    Values sum(rows * width);
    for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, {cut, vocab}}) {
      const OnDevice gy(dtype(), {rows, width});
      embedding_forward({gy, gtable.view().slice(0, begin, end), gt, begin, vocab},
                        cuda_test_stream());
      embedding_backward({gd.view().slice(0, begin, end), gdy, gt, begin}, cuda_test_stream());
      const Values part = device_values(gy);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    }
    EXPECT_EQ(sum, got[0]);
    EXPECT_TRUE(same_bits(device_values(gd), got[1]));
  }
}

TEST_F(CudaTest, EmbeddingOfAnUnknownTokenIsNan) {
  const OnDevice table(DType::f32, {2, 4}, Values(8, 1.0)), y(DType::f32, {3, 4});
  const OnDevice tokens(DType::i32, {3}, {1, 2, -1}), dtable = device_zeros(DType::f32, {2, 4});
  embedding_forward({y, table, tokens, 0, 2}, cuda_test_stream());
  const Values got = device_values(y);
  EXPECT_EQ(Values(got.begin(), got.begin() + 4), Values(4, 1.0));
  EXPECT_TRUE(std::all_of(got.begin() + 4, got.end(), [](double v) { return std::isnan(v); }));
  embedding_backward({dtable, OnDevice(DType::f32, {3, 4}, Values(12, 1.0)), tokens},
                     cuda_test_stream());
  EXPECT_EQ(device_values(dtable), (Values{0, 0, 0, 0, 1, 1, 1, 1}));
}

// ---- Loss

TEST_P(CudaKernels, CrossEntropy) {
  for (const auto& [rows, vocab] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 10}, {1, 1}, {5, 7}, {33, 1000}, {300, 512}, {20, 50257}, {9, 128256}}) {
    for (const int ranks : {1, 2, 3, 8}) {
      if (ranks > vocab) continue;
      SCOPED_TRACE(concat(rows, " x ", vocab, " over ", ranks));
      std::vector<int64_t> widths;
      for (int p = 0; p < ranks; ++p) {
        widths.push_back(vocab * (p + 1) / ranks - vocab * p / ranks);
      }
      const Values logits = random_values(dtype(), rows * vocab, "logits", 4);
      Values labels = random_integers(rows, "labels", vocab);
      for (size_t r = 2; r < labels.size(); r += 5) labels[r] = -1;
      const Owned hl = f64({rows, vocab}, logits), hs = filled(DType::f64, {1}, 2.5);
      const Owned statistics(DType::f64, {1, kRowStatistics, rows});
      cross_entropy({hs, {hl}, statistics, from_values(DType::i32, {rows}, labels), 0.125},
                    cpu_stream());
      const auto got = twice([&] {
        const OnDevice gl(dtype(), {rows, vocab}, logits), gt(DType::i32, {rows}, labels);
        const OnDevice sum(DType::f64, {1}, {2.5}), only_sum(DType::f64, {1}, {2.5});
        const OnDevice numbers(DType::f32, {ranks, kRowStatistics, rows});
        const auto pieces = column_pieces(gl, widths);
        cross_entropy({only_sum, pieces, numbers, gt, 0.125, false}, cuda_test_stream());
        EXPECT_EQ(device_values(gl), logits) << "changed without a gradient";
        cross_entropy({sum, pieces, numbers, gt, 0.125, true}, cuda_test_stream());
        return std::vector{device_values(gl), device_values(sum), device_values(only_sum)};
      });
      const double floor = vocab == 1 ? 0.125 : 0;  // p - 1 of the only token is 0
      // In bf16 the softmax of a part is rounded before that of all.
      expect_near(got[0], hl, (ranks == 1 ? 1 : 2) * tolerance_of(dtype()), "gradient", floor);
      expect_near(got[1], hs, 1e-6, "loss");
      EXPECT_EQ(got[1], got[2]);
      for (size_t r = 2; r < labels.size(); r += 5) EXPECT_EQ(got[0][r * vocab], 0);
    }
  }
}

TEST_F(CudaTest, CrossEntropyOfALabelPastTheVocabularyIsNan) {
  for (const std::vector<int64_t>& widths : {std::vector<int64_t>{3}, {1, 2}}) {
    const OnDevice logits(DType::f32, {1, 3}, {1, 2, 3}), label(DType::i32, {1}, {3});
    const OnDevice sum(DType::f64, {1}, {0});
    const OnDevice statistics(DType::f32, {std::ssize(widths), kRowStatistics, 1});
    cross_entropy({sum, column_pieces(logits, widths), statistics, label}, cuda_test_stream());
    EXPECT_TRUE(std::isnan(device_values(sum)[0]));
    for (const double gradient : device_values(logits)) EXPECT_TRUE(std::isnan(gradient));
  }
}

// ---- Optimizer

TEST_P(CudaKernels, SquaredSum) {
  for (const int64_t n : {0, 1, 5, 1000, 16384, 100003, 3000000}) {
    const Values x = random_values(dtype(), n, "squares");
    const Owned total = filled(DType::f64, {1}, 3.0);
    squared_sum({total, f64({n}, x)}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gx(dtype(), {n}, x), sum(DType::f64, {1}, {3.0});
      squared_sum({sum, gx}, cuda_test_stream());
      return std::vector<Values>{device_values(sum)};
    });
    expect_near(got[0], total, 1e-12, "sum of squares");
  }
}

TEST_F(CudaTest, BeginNorm) {
  const Values numbers = {0.0, 3.0, -1.7e308, 1.7e308, kInfinity, -kInfinity, std::nan("")};
  for (const double before : numbers) {
    for (const double loss : numbers) {
      const OnDevice norm(DType::f64, {1}, {before}), sum(DType::f64, {1}, {loss});
      const Owned host = f64({1}, {before});
      begin_norm({.squared_norm = host, .loss_sum = f64({1}, {loss})}, cpu_stream());
      begin_norm({.squared_norm = norm, .loss_sum = sum}, cuda_test_stream());
      EXPECT_EQ(std::isnan(device_values(norm)[0]), std::isnan(values(host)[0]))
          << before << " " << loss;
      if (std::isnan(values(host)[0])) continue;
      EXPECT_EQ(device_values(norm)[0], 0) << before << " " << loss;
    }
  }
}

/// Parameters and moments after two steps, the change of the parameters separately.
TEST_F(CudaTest, AdamW) {
  for (const int64_t n : {0, 1, 5, 1000, 100003}) {
    for (const int64_t skip : {0, 1, 4}) {  // where a slice of the parameters starts
      for (const double norm2 : {1e-4, 400.0, kInfinity, std::nan("")}) {
        SCOPED_TRACE(concat(n, " from ", skip, " squared norm ", norm2));
        const Values p = random_values(DType::f32, n + skip, "param");
        const Values g = random_values(DType::f32, n + skip, "grad");
        const Values zero(n + skip, 0.0);
        const auto run = [&](const auto& make, Stream& stream, const auto& read) {
          const auto param = make(DType::f32, p), m = make(DType::f32, zero),
                     v = make(DType::f32, zero), grad = make(DType::f32, g);
          const auto norm = make(DType::f64, Values{norm2});
          const auto part = [&](const Tensor& t) { return t.slice(0, skip, n + skip); };
          for (const int64_t step : {1, 2}) {
            adamw({part(param), part(m), part(v), part(grad), norm, 1.0, 1e-2, 0.9, 0.95, 1e-8, 0.1,
                   step},
                  stream);
          }
          return std::vector<Values>{minus(read(param), p), read(m), read(v)};
        };
        const auto host = run(
            [](DType dtype, const Values& x) {
              (void)dtype;
              return f64({std::ssize(x)}, x);
            },
            cpu_stream(), [](const Tensor& t) { return values(t); });
        const auto got = twice([&] {
          return run(
              [](DType dtype, const Values& x) { return OnDevice(dtype, {std::ssize(x)}, x); },
              cuda_test_stream(), [](const Tensor& t) { return device_values(t); });
        });
        // A change of 1e-2 of parameters of order one is rounded by 6e-8.
        EXPECT_LE(relative_rms(got[0], host[0]), 3e-5);
        EXPECT_LE(relative_rms(got[1], host[1]), 1e-6);
        EXPECT_LE(relative_rms(got[2], host[2]), 1e-6);
        EXPECT_TRUE(std::isfinite(norm2) || rms(got[0]) == 0);
      }
    }
  }
}

TEST_F(CudaTest, WhatMuonAddsToAdamW) {
  for (const int64_t n : {0, 1, 5, 1000, 100003}) {
    for (const double norm2 : {1e-4, 400.0, kInfinity, std::nan("")}) {
      SCOPED_TRACE(concat(n, " squared norm ", norm2));
      const Values p = random_values(DType::f32, n, "param"),
                   g = random_values(DType::f32, n, "grad");
      const Values momentum = random_values(DType::f32, n, "m");
      const auto run = [&](const auto& make, Stream& stream, const auto& read) {
        const auto param = make(DType::f32, p), m = make(DType::f32, momentum);
        const auto grad = make(DType::f32, g);
        const auto norm = make(DType::f64, Values{norm2}), squares = make(DType::f64, Values{2.25});
        nesterov({grad, m, grad, norm, 1.0, 0.95}, stream);
        decayed_step({param, grad, norm, 0.1, 3.0, 0.2}, stream);
        const Values updated = read(param);
        normalize({grad, squares, 0.5}, stream);
        add_scaled({param, grad, -3.0}, stream);
        return std::vector<Values>{updated, read(m), read(grad), read(param)};
      };
      const auto host = run(
          [](DType dtype, const Values& x) {
            (void)dtype;
            return f64({std::ssize(x)}, x);
          },
          cpu_stream(), [](const Tensor& t) { return values(t); });
      const auto got = twice([&] {
        return run([](DType dtype, const Values& x) { return OnDevice(dtype, {std::ssize(x)}, x); },
                   cuda_test_stream(), [](const Tensor& t) { return device_values(t); });
      });
      for (size_t i = 0; i < host.size(); ++i) EXPECT_LE(relative_rms(got[i], host[i]), 1e-6) << i;
    }
  }
}

// ---- Rotary embedding

TEST_P(CudaKernels, Rope) {
  for (const auto& [dim, tokens] : std::vector<std::pair<int64_t, int64_t>>{
           {2, 37}, {6, 37}, {16, 37}, {64, 37}, {128, 37}, {16, kLongShard}}) {
    SCOPED_TRACE(concat("D ", dim, " tokens ", tokens));
    const int64_t batch = 2, heads = 3;
    const Shape table = {batch, tokens, dim / 2}, shape = {batch, tokens, heads + 2, dim};
    const auto frequencies = rope_frequencies({500000, {}}, dim);
    const Values at = random_integers(batch * tokens, "positions", 1 << 20);
    const Values x = random_values(dtype(), batch * tokens * (heads + 2) * dim, "x");
    const Owned hc(DType::f64, table), hs(DType::f64, table), hx = f64(shape, x);
    rope_table({hc, hs, from_values(DType::i64, {batch, tokens}, at), &frequencies}, cpu_stream());
    const auto inner = [&](const Tensor& t) { return t.slice(2, 1, 1 + heads); };
    rope({inner(hx), hc, hs}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gc(DType::f32, table), gs(DType::f32, table), gx(dtype(), shape, x);
      rope_table({gc, gs, OnDevice(DType::i64, {batch, tokens}, at), &frequencies},
                 cuda_test_stream());
      rope({inner(gx), gc, gs}, cuda_test_stream());
      const Values turned = device_values(gx);
      rope({inner(gx), gc, gs, true}, cuda_test_stream());
      return std::vector{device_values(gc), device_values(gs), turned, device_values(gx)};
    });
    expect_near(got[0], hc, 1e-6, "cos");
    expect_near(got[1], hs, 1e-6, "sin");
    expect_near(got[2], hx, tolerance_of(dtype()), "turned");
    EXPECT_LE(relative_rms(got[3], x), tolerance_of(dtype())) << "there and back";
    EXPECT_EQ(got[2][0], x[0]) << "other heads changed";
  }
}

}  // namespace
}  // namespace weft
