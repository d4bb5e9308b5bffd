// The CUDA twins of feature maps, decay gates and the gated norm against the CPU's in f64, which
// get the inputs as the GPU's dtype rounds them.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/decay_gates.hpp"
#include "src/kernels/feature_map.hpp"
#include "src/kernels/gated_norm.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {
namespace {

using Shape = std::vector<int64_t>;

class CudaGates : public CudaDtypeTest {};
INSTANTIATE_TEST_SUITE_P(Dtypes, CudaGates, testing::Values(DType::f32, DType::bf16), dtype_name);

/// Rows and widths: none, odd, parts of a warp, whole packs, wider than what a team holds.
const std::vector<Shape> kShapes = {{0, 64},    {1, 1},     {1, 8},     {3, 7},    {37, 16},
                                    {5000, 16}, {129, 100}, {9001, 64}, {300, 96}, {12000, 128},
                                    {257, 768}, {70, 2048}, {33, 8192}, {9, 2049}, {5, 20480}};

// ---- Feature maps

TEST_P(CudaGates, Silu) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t n = shape[0] * shape[1];
    const Values x = random_values(dtype(), n, "x", 3), dy = random_values(DType::f32, n, "dy");
    const Owned hx = f64(shape, x), hy(DType::f64, shape), hd = f64(shape, dy);
    silu_forward({hy, hx}, cpu_stream());
    silu_backward({hd, hd, hx}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gx(dtype(), shape, x), gy(dtype(), shape), gd(DType::f32, shape, dy);
      const OnDevice dx(DType::f32, shape);
      silu_forward({gy, gx}, cuda_test_stream());
      silu_backward({dx, gd, gx}, cuda_test_stream());
      silu_backward({gd, gd, gx}, cuda_test_stream());
      return std::vector{device_values(gy), device_values(dx), device_values(gd)};
    });
    expect_near(got[0], hy, tolerance_of(dtype()), "y");
    expect_near(got[1], hd, 1e-5, "dx");
    EXPECT_TRUE(same_bits(got[1], got[2])) << "in place";
  }
}

TEST_P(CudaGates, FeatureMaps) {
  for (const Shape& shape : kShapes) {
    for (const FeatureMap map : {FeatureMap::identity, FeatureMap::elu, FeatureMap::relu}) {
      SCOPED_TRACE(concat(shape[0], " x ", shape[1], " map ", int(map)));
      const int64_t n = shape[0] * shape[1];
      const Values x = random_values(dtype(), n, "x", 3), dy = random_values(DType::f32, n, "dy");
      const Owned hx = f64(shape, x);
      feature_map_forward({hx, map}, cpu_stream());
      // The gradient follows from the features as they are stored.
      const Values features = rounded(dtype(), values(hx));
      const Owned hd = f64(shape, dy);
      feature_map_backward({hd, f64(shape, features), map}, cpu_stream());
      const auto got = twice([&] {
        const OnDevice gx(dtype(), shape, x), gd(DType::f32, shape, dy);
        const OnDevice stored(dtype(), shape, features);
        feature_map_forward({gx, map}, cuda_test_stream());
        feature_map_backward({gd, stored, map}, cuda_test_stream());
        return std::vector{device_values(gx), device_values(gd)};
      });
      expect_near(got[0], hx, tolerance_of(dtype()), "features");
      expect_near(got[1], hd, 1e-5, "gradient");
    }
  }
}

TEST_P(CudaGates, SiluAndFeatureMapsFarFromZero) {
  const Values far = {-10000, -800, -0.0, 0, 800, 10000}, one(6, 1.0);
  const OnDevice x(dtype(), {6}, far), y(dtype(), {6}), d(DType::f32, {6}, one);
  silu_forward({y, x}, cuda_test_stream());
  silu_backward({d, d, x}, cuda_test_stream());
  const Values silu = device_values(y), slope = device_values(d), large = rounded(dtype(), far);
  const Values expected = {0, 0, 0, 0, large[4], large[5]}, slopes = {0, 0, 0.5, 0.5, 1, 1};
  for (int i = 0; i < 6; ++i) {
    EXPECT_NEAR(silu[i], expected[i], 1e-30) << i;
    EXPECT_NEAR(slope[i], slopes[i], 1e-6) << i;
  }
  const OnDevice elu(dtype(), {6}, far), delu(DType::f32, {6}, one);
  feature_map_forward({elu, FeatureMap::elu}, cuda_test_stream());
  feature_map_backward({delu, elu, FeatureMap::elu}, cuda_test_stream());
  EXPECT_EQ(device_values(elu), rounded(dtype(), {0, 0, 1, 1, 801, 10001}));
  EXPECT_EQ(device_values(delu), (Values{0, 0, 1, 1, 1, 1}));
  const OnDevice relu(dtype(), {6}, far), drelu(DType::f32, {6}, one);
  feature_map_forward({relu, FeatureMap::relu}, cuda_test_stream());
  feature_map_backward({drelu, relu, FeatureMap::relu}, cuda_test_stream());
  EXPECT_EQ(device_values(relu), (Values{0, 0, 0, 0, large[4], large[5]}));
  EXPECT_EQ(device_values(drelu), (Values{0, 0, 0, 0, 1, 1}));
}

TEST_P(CudaGates, UnitNorm) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t n = shape[0] * shape[1];
    const Values x = random_values(dtype(), n, "x"), dy = random_values(DType::f32, n, "dy");
    const Owned hx = f64(shape, x), hr(DType::f64, {shape[0]}), hd = f64(shape, dy);
    unit_norm_forward({hx, hr, 1e-6}, cpu_stream());
    const Values units = rounded(dtype(), values(hx)), norms = rounded(DType::f32, values(hr));
    unit_norm_backward({hd, f64(shape, units), f64({shape[0]}, norms)}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gx(dtype(), shape, x), gr(DType::f32, {shape[0]});
      const OnDevice gd(DType::f32, shape, dy), stored(dtype(), shape, units);
      const OnDevice stored_norms(DType::f32, {shape[0]}, norms);
      unit_norm_forward({gx, gr, 1e-6}, cuda_test_stream());
      unit_norm_backward({gd, stored, stored_norms}, cuda_test_stream());
      return std::vector{device_values(gx), device_values(gr), device_values(gd)};
    });
    expect_near(got[0], hx, tolerance_of(dtype()), "y");
    expect_near(got[1], hr, 1e-5, "rnorm");
    // Of a row of one nearly nothing is left: compared at the scale of what cancels.
    expect_near(got[2], hd, 1e-5, "dx", rms(norms));
  }
}

// ---- Decay gates

TEST_F(CudaTest, FixedDecay) {
  for (const int64_t heads : {0, 1, 16, 512, 1300}) {
    const Values logs = random_values(DType::f32, heads, "decays");
    const OnDevice log_decay(DType::f32, {heads});
    fixed_decay({log_decay, &logs}, cuda_test_stream());
    EXPECT_EQ(device_values(log_decay), logs);
  }
}

TEST_P(CudaGates, SigmoidDecay) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t columns = shape[1], n = shape[0] * columns;
    const Values x = random_values(dtype(), n, "x", 3), bias = random_values(dtype(), columns, "b");
    const Values dlog = random_values(DType::f32, n, "dlog");
    const Values dbias = random_values(DType::f32, columns, "dbias");
    const Owned hx = f64(shape, x), hb = f64({columns}, bias), hl(DType::f64, shape);
    const Owned hdx(DType::f64, shape), hdb = f64({columns}, dbias), hd = f64(shape, dlog);
    sigmoid_decay_forward({hl, hx, hb, 12}, cpu_stream());
    sigmoid_decay_backward({hdx, hdb, hd, hx, hb, 12}, cpu_stream());
    const auto got = twice([&] {
      const OnDevice gx(dtype(), shape, x), gb(dtype(), {columns}, bias), gl(DType::f32, shape);
      const OnDevice gdx(dtype(), shape), gdb(DType::f32, {columns}, dbias);
      const OnDevice gd(DType::f32, shape, dlog);
      sigmoid_decay_forward({gl, gx, gb, 12}, cuda_test_stream());
      sigmoid_decay_backward({gdx, gdb, gd, gx, gb, 12}, cuda_test_stream());
      return std::vector{device_values(gl), device_values(gdx), device_values(gdb)};
    });
    expect_near(got[0], hl, 1e-5, "log_decay");
    expect_near(got[1], hdx, tolerance_of(dtype()), "dx");
    expect_near(got[2], hdb, 1e-5, "dbias", 0.3);
  }
}

TEST_P(CudaGates, DeltaGates) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(concat(shape[0], " x ", shape[1]));
    const int64_t heads = shape[1], n = shape[0] * heads;
    const Values a = random_values(dtype(), n, "a", 3), b = random_values(dtype(), n, "b", 3);
    const Values a_log = random_values(dtype(), heads, "a_log");
    const Values dt_bias = random_values(dtype(), heads, "dt_bias");
    const Values dlog = random_values(DType::f32, n, "dlog");
    const Values dbeta = random_values(DType::f32, n, "dbeta");
    const Values sums = random_values(DType::f32, heads, "sums");
    const Owned ha = f64(shape, a), hb = f64(shape, b), hal = f64({heads}, a_log);
    const Owned hdt = f64({heads}, dt_bias), hl(DType::f64, shape), hbeta(DType::f64, shape);
    const Owned hda(DType::f64, shape), hdb(DType::f64, shape), hdal = f64({heads}, sums);
    const Owned hddt = f64({heads}, sums), hdlog = f64(shape, dlog), hdbeta = f64(shape, dbeta);
    delta_gates_forward({hl, hbeta, ha, hb, hal, hdt, 2}, cpu_stream());
    delta_gates_backward({hda, hdb, hdal, hddt, hdlog, hdbeta, hl, ha, hb, hal, hdt, 2},
                         cpu_stream());
    const auto got = twice([&] {
      const OnDevice ga(dtype(), shape, a), gb(dtype(), shape, b), gal(dtype(), {heads}, a_log);
      const OnDevice gdt(dtype(), {heads}, dt_bias), gl(DType::f32, shape);
      const OnDevice gbeta(DType::f32, shape), gda(dtype(), shape), gdb(dtype(), shape);
      const OnDevice gdal(DType::f32, {heads}, sums), gddt(DType::f32, {heads}, sums);
      const OnDevice gdlog(DType::f32, shape, dlog), gdbeta(DType::f32, shape, dbeta);
      delta_gates_forward({gl, gbeta, ga, gb, gal, gdt, 2}, cuda_test_stream());
      delta_gates_backward({gda, gdb, gdal, gddt, gdlog, gdbeta, gl, ga, gb, gal, gdt, 2},
                           cuda_test_stream());
      return std::vector{device_values(gl),  device_values(gbeta), device_values(gda),
                         device_values(gdb), device_values(gdal),  device_values(gddt)};
    });
    expect_near(got[0], hl, 1e-5, "log_decay");
    expect_near(got[1], hbeta, 1e-5, "beta");
    expect_near(got[2], hda, tolerance_of(dtype()), "da");
    expect_near(got[3], hdb, tolerance_of(dtype()), "db");
    expect_near(got[4], hdal, 1e-5, "da_log", 0.3);
    expect_near(got[5], hddt, 1e-5, "ddt_bias", 0.3);
  }
}

TEST_P(CudaGates, GatesFarFromZero) {  // numbers that bf16 holds
  const Shape shape = {4, 1};
  const OnDevice x(dtype(), shape, {-800, 800, -8192, 8192}), zero = device_zeros(dtype(), {1});
  const OnDevice log_decay(DType::f32, shape), beta(DType::f32, shape);
  const OnDevice one(DType::f32, shape, Values(4, 1.0)), dx(dtype(), shape), db(dtype(), shape);
  const OnDevice first = device_zeros(DType::f32, {1}), second = device_zeros(DType::f32, {1});
  sigmoid_decay_forward({log_decay, x, zero, 16}, cuda_test_stream());
  sigmoid_decay_backward({dx, first, one, x, zero, 16}, cuda_test_stream());
  EXPECT_EQ(device_values(log_decay), (Values{-50, 0, -512, 0}));
  EXPECT_EQ(device_values(dx), (Values{0.0625, 0, 0.0625, 0}));
  EXPECT_EQ(device_values(first), Values{0.125});
  delta_gates_forward({log_decay, beta, x, x, zero, zero, 2}, cuda_test_stream());
  EXPECT_EQ(device_values(log_decay), (Values{0, -800, 0, -8192}));
  EXPECT_EQ(device_values(beta), (Values{0, 2, 0, 2}));
  delta_gates_backward({dx, db, first, second, one, one, log_decay, x, x, zero, zero, 2},
                       cuda_test_stream());
  EXPECT_EQ(device_values(dx), (Values{0, -1, 0, -1}));
  EXPECT_EQ(device_values(db), (Values{0, 0, 0, 0}));
  EXPECT_EQ(device_values(first), Values{0.125 - 8992});
  EXPECT_EQ(device_values(second), Values{-2});
}

// ---- Gated norm

TEST_P(CudaGates, GatedNorm) {
  for (const Shape& shape : kShapes) {
    for (const GateFunction function :
         {GateFunction::none, GateFunction::silu, GateFunction::sigmoid}) {
      SCOPED_TRACE(concat(shape[0], " x ", shape[1], " function ", int(function)));
      const int64_t rows = shape[0], width = shape[1], n = rows * width;
      const bool none = function == GateFunction::none;
      const Values x = random_values(DType::f32, n, "x"), dy = random_values(dtype(), n, "dy");
      const Values gate = random_values(dtype(), n, "gate", 3);
      const Values weight = random_values(dtype(), width, "weight");
      const Values dw = random_values(DType::f32, width, "dw");
      const Owned hx = f64(shape, x), hw = f64({width}, weight), hy(DType::f64, shape);
      const Owned hg = none ? Owned() : f64(shape, gate), hrstd(DType::f64, {rows});
      const Owned hdx(DType::f64, shape), hdg = none ? Owned() : Owned(DType::f64, shape);
      const Owned hdw = f64({width}, dw), hdy = f64(shape, dy);
      gated_norm_forward({hy, hrstd, hx, hg, hw, function, 1e-5}, cpu_stream());
      gated_norm_backward({hdx, hdg, hdw, hy, hdy, hx, hrstd, hg, hw, function}, cpu_stream());
      const auto got = twice([&] {
        const OnDevice gx(DType::f32, shape, x), gw(dtype(), {width}, weight), gy(dtype(), shape);
        const OnDevice gg(dtype(), shape, gate), grstd(DType::f32, {rows}), again(dtype(), shape);
        const OnDevice gdx(dtype(), shape), gdg(dtype(), shape), gdw(DType::f32, {width}, dw);
        const OnDevice gdy(dtype(), shape, dy), other(DType::f32, {width}, dw);
        const Tensor g = none ? Tensor{} : gg.view(), dg = none ? Tensor{} : gdg.view();
        gated_norm_forward({gy, grstd, gx, g, gw, function, 1e-5}, cuda_test_stream());
        gated_norm_backward({gdx, dg, gdw, again, gdy, gx, grstd, g, gw, function},
                            cuda_test_stream());
        EXPECT_TRUE(same_bits(device_values(again), device_values(gy))) << "not forward's y";
        gated_norm_backward({gdy, dg, other, again, gdy, gx, grstd, g, gw, function},
                            cuda_test_stream());
        EXPECT_TRUE(same_bits(device_values(gdy), device_values(gdx))) << "dx in place of dy";
        return std::vector{device_values(gy), device_values(grstd), device_values(gdx),
                           device_values(gdw), none ? Values{} : device_values(gdg)};
      });
      expect_near(got[0], hy, tolerance_of(dtype()), "y");
      expect_near(got[1], hrstd, 1e-5, "rstd");
      // Of a row of one nearly nothing is left: compared at the scale of what cancels.
      expect_near(got[2], hdx, tolerance_of(dtype()), "dx", width == 1 ? rms(values(hrstd)) : 0);
      expect_near(got[3], hdw, 1e-5, "dweight", 0.3);
      if (!none) expect_near(got[4], hdg, tolerance_of(dtype()), "dgate");
    }
  }
}

/// Rows as parts of wholes twice as wide, whose sums are given.
TEST_P(CudaGates, GatedNormOfParts) {
  for (const Shape& shape : kShapes) {
    for (const GateFunction function :
         {GateFunction::none, GateFunction::silu, GateFunction::sigmoid}) {
      SCOPED_TRACE(concat(shape[0], " x ", shape[1], " function ", int(function)));
      const int64_t rows = shape[0], width = shape[1], n = rows * width, whole = 2 * width;
      const bool none = function == GateFunction::none;
      const Values x = random_values(DType::f32, n, "x"), dy = random_values(dtype(), n, "dy");
      const Values gate = random_values(dtype(), n, "gate", 3);
      const Values weight = random_values(dtype(), width, "weight");
      const Owned hx = f64(shape, x), hw = f64({width}, weight), hy(DType::f64, shape);
      const Owned hg = none ? Owned() : f64(shape, gate), hrstd(DType::f64, {rows});
      const Owned hdx(DType::f64, shape), hdg = none ? Owned() : Owned(DType::f64, shape);
      const Owned hdw = zeros(DType::f64, {width}), hdy = f64(shape, dy);
      const Owned hsquares(DType::f64, {rows}), halong(DType::f64, {rows});
      row_squares({hsquares, hx}, cpu_stream());
      gated_norm_along({halong, hdy, hx, hg, hw, function}, cpu_stream());
      gated_norm_forward({hy, hrstd, hx, hg, hw, function, 1e-5, hsquares, whole}, cpu_stream());
      gated_norm_backward({hdx, hdg, hdw, hy, hdy, hx, hrstd, hg, hw, function, halong, whole},
                          cpu_stream());
      const auto got = twice([&] {
        const OnDevice gx(DType::f32, shape, x), gw(dtype(), {width}, weight), gy(dtype(), shape);
        const OnDevice gg(dtype(), shape, gate), grstd(DType::f32, {rows}), again(dtype(), shape);
        const OnDevice gdx(dtype(), shape), gdg(dtype(), shape);
        const OnDevice gdw = device_zeros(DType::f32, {width}), gdy(dtype(), shape, dy);
        const OnDevice squares(DType::f32, {rows}), along(DType::f32, {rows});
        const Tensor g = none ? Tensor{} : gg.view(), dg = none ? Tensor{} : gdg.view();
        row_squares({squares, gx}, cuda_test_stream());
        gated_norm_along({along, gdy, gx, g, gw, function}, cuda_test_stream());
        gated_norm_forward({gy, grstd, gx, g, gw, function, 1e-5, squares, whole},
                           cuda_test_stream());
        gated_norm_backward({gdx, dg, gdw, again, gdy, gx, grstd, g, gw, function, along, whole},
                            cuda_test_stream());
        EXPECT_TRUE(same_bits(device_values(again), device_values(gy))) << "not forward's y";
        return std::vector{device_values(gy),
                           device_values(grstd),
                           device_values(gdx),
                           device_values(gdw),
                           device_values(squares),
                           device_values(along),
                           none ? Values{} : device_values(gdg)};
      });
      expect_near(got[0], hy, tolerance_of(dtype()), "y");
      expect_near(got[1], hrstd, 1e-5, "rstd");
      // As above: of a part of one nearly nothing is left where the sums are its own.
      expect_near(got[2], hdx, tolerance_of(dtype()), "dx", width == 1 ? rms(values(hrstd)) : 0);
      expect_near(got[3], hdw, 1e-5, "dweight", 0.3);
      expect_near(got[4], hsquares, 1e-5, "squares");
      // A sum of terms of both signs: compared at the scale of the terms.
      expect_near(got[5], halong, 1e-5, "along", std::sqrt(static_cast<double>(width)));
      if (!none) expect_near(got[6], hdg, tolerance_of(dtype()), "dgate");
    }
  }
}

/// Parameters of bf16 with gradients of bf16, as a run without f32 sums has them.
TEST_F(CudaTest, ParameterGradientsInBf16) {
  const Shape shape = {50, 24};
  const Values x = random_values(DType::bf16, 50 * 24, "x");
  const Values dlog = random_values(DType::f32, 50 * 24, "dlog"), zero(24, 0.0);
  const Owned hx = f64(shape, x), hdx(DType::f64, shape), hdb = f64({24}, zero);
  sigmoid_decay_backward({hdx, hdb, f64(shape, dlog), hx, f64({24}, zero), 1}, cpu_stream());
  const OnDevice gx(DType::bf16, shape, x), gdx(DType::bf16, shape), gb(DType::bf16, {24}, zero);
  const OnDevice gdb(DType::bf16, {24}, zero), gd(DType::f32, shape, dlog);
  sigmoid_decay_backward({gdx, gdb, gd, gx, gb, 1}, cuda_test_stream());
  expect_near(device_values(gdb), hdb, 8e-3, "dbias");
}

}  // namespace
}  // namespace weft
