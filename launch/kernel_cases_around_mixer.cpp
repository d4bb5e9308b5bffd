// What stands around a state mixer: short convolution, feature maps, decays, and the gated norm.
#include <cmath>

#include "launch/kernel_cases.hpp"
#include "src/kernels/decay_gates.hpp"
#include "src/kernels/feature_map.hpp"
#include "src/kernels/gated_norm.hpp"
#include "src/kernels/short_convolution.hpp"

namespace weft {
namespace {

using enum Element;

// ---- Feature maps, and keys of length 1

KernelUse activation(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(silu_forward, {.y = w.output("y", data, {R, C}), .x = w.input(data, {R, C})},
                shape_text({R, C}));
}

KernelUse activation_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(
      silu_backward,
      {.dx = w.output("dx", wide, {R, C}), .dy = w.input(wide, {R, C}), .x = w.input(data, {R, C})},
      shape_text({R, C}));
}

KernelUse features(Workbench& w, FeatureMap map) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  return use_of(feature_map_forward, {.x = w.updated("x", data, {R, C}), .map = map},
                shape_text({R, C}));
}

KernelUse features_gradient(Workbench& w, FeatureMap map) {
  const int64_t R = w.sizes().rows(), C = w.sizes().width;
  const auto feature = [map](double x) {
    if (map == FeatureMap::relu) return std::max(x, 0.0);
    return x > 0 ? x + 1 : std::exp(x);
  };
  return use_of(
      feature_map_backward,
      {.dy = w.updated("dx", wide, {R, C}), .y = w.input(data, {R, C}, feature), .map = map},
      shape_text({R, C}));
}

KernelUse unit_rows(Workbench& w) {
  const int64_t R = w.sizes().rows() * w.sizes().heads, D = w.sizes().head_dim;
  return use_of(unit_norm_forward,
                {.x = w.updated("x", data, {R, D}), .rnorm = w.output("rnorm", wide, {R})},
                shape_text({R, D}));
}

KernelUse unit_rows_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows() * w.sizes().heads, D = w.sizes().head_dim;
  const Tensor y = w.input(data, {R, D}), rnorm = w.work(wide, {R});
  unit_norm_forward({.x = y, .rnorm = rnorm}, w.stream());
  return use_of(unit_norm_backward, {.dy = w.updated("dx", wide, {R, D}), .y = y, .rnorm = rnorm},
                shape_text({R, D}));
}

// ---- Short convolution

constexpr int64_t kTaps = 4;

KernelUse convolution(Workbench& w) {
  const int64_t B = w.sizes().batch, T = w.sizes().tokens, D = w.sizes().width;
  return use_of(short_convolution_forward,
                {.y = w.output("y", data, {B, T, D}),
                 .x = w.input(data, {B, T, D}),
                 .before = w.input(data, {kTaps - 1, B, D}),
                 .weight = w.input(data, {D, 1, kTaps}),
                 .positions = w.positions(T)},
                shape_text({B, T, D}));
}

KernelUse convolution_gradient(Workbench& w) {
  const int64_t B = w.sizes().batch, T = w.sizes().tokens, D = w.sizes().width;
  return use_of(short_convolution_backward,
                {.dx = w.output("dx", wide, {B, T, D}),
                 .dbefore = w.output("dbefore", wide, {kTaps - 1, B, D}),
                 .dweight = w.updated("dweight", wide, {D, 1, kTaps}),
                 .dy = w.input(wide, {B, T, D}),
                 .x = w.input(data, {B, T, D}),
                 .before = w.input(data, {kTaps - 1, B, D}),
                 .weight = w.input(data, {D, 1, kTaps}),
                 .positions = w.positions(T)},
                shape_text({B, T, D}));
}

// ---- Decays

KernelUse constant_decays(Workbench& w) {
  const int64_t H = w.sizes().heads;
  std::vector<double> logs(H);
  for (int64_t h = 0; h < H; ++h) logs[h] = -std::exp2(-5.0 - static_cast<double>(h));
  return use_of(fixed_decay,
                {.log_decay = w.output("log_decay", wide, {H}), .values = w.keep(std::move(logs))},
                shape_text({H}));
}

KernelUse sigmoid_decays(Workbench& w) {
  const int64_t R = w.sizes().rows(), N = w.sizes().width;
  return use_of(sigmoid_decay_forward,
                {.log_decay = w.output("log_decay", wide, {R, N}),
                 .x = w.input(data, {R, N}),
                 .bias = w.input(data, {N})},
                shape_text({R, N}));
}

KernelUse sigmoid_decays_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows(), N = w.sizes().width;
  return use_of(sigmoid_decay_backward,
                {.dx = w.output("dx", data, {R, N}),
                 .dbias = w.updated("dbias", wide, {N}),
                 .dlog_decay = w.input(wide, {R, N}),
                 .x = w.input(data, {R, N}),
                 .bias = w.input(data, {N})},
                shape_text({R, N}));
}

KernelUse delta_gates(Workbench& w) {
  const int64_t R = w.sizes().rows(), H = w.sizes().heads;
  return use_of(delta_gates_forward,
                {.log_decay = w.output("log_decay", wide, {R, H}),
                 .beta = w.output("beta", wide, {R, H}),
                 .a = w.input(data, {R, H}),
                 .b = w.input(data, {R, H}),
                 .a_log = w.input(data, {H}),
                 .dt_bias = w.input(data, {H})},
                shape_text({R, H}));
}

KernelUse delta_gates_gradient(Workbench& w) {
  const int64_t R = w.sizes().rows(), H = w.sizes().heads;
  const Tensor a = w.input(data, {R, H}), b = w.input(data, {R, H});
  const Tensor a_log = w.input(data, {H}), dt_bias = w.input(data, {H});
  const Tensor log_decay = w.work(wide, {R, H}), beta = w.work(wide, {R, H});
  delta_gates_forward({log_decay, beta, a, b, a_log, dt_bias}, w.stream());
  return use_of(delta_gates_backward,
                {.da = w.output("da", data, {R, H}),
                 .db = w.output("db", data, {R, H}),
                 .da_log = w.updated("da_log", wide, {H}),
                 .ddt_bias = w.updated("ddt_bias", wide, {H}),
                 .dlog_decay = w.input(wide, {R, H}),
                 .dbeta = w.input(wide, {R, H}),
                 .log_decay = log_decay,
                 .a = a,
                 .b = b,
                 .a_log = a_log,
                 .dt_bias = dt_bias},
                shape_text({R, H}));
}

// ---- Gated norm

/// Rows that are normed: a head each, the heads of a token, or half of a token's, the other half
/// being another rank's.
enum class Normed { head, token, half_token };

struct NormedRows {
  NormedRows(const KernelSizes& sizes, Normed normed) {
    const int64_t heads = normed == Normed::half_token ? sizes.heads / 2 : sizes.heads;
    const int64_t elements = sizes.rows() * heads * sizes.head_dim;
    D = normed == Normed::head ? sizes.head_dim : heads * sizes.head_dim;
    R = elements / D;
    whole = normed == Normed::half_token ? 2 * D : 0;
  }
  int64_t R, D, whole;
};

constexpr GateFunction kSilu = GateFunction::silu;

KernelUse gated(Workbench& w, Normed normed) {
  const auto [R, D, whole] = NormedRows(w.sizes(), normed);
  GatedNormArgs args{.y = w.output("y", data, {R, D}),
                     .rstd = w.output("rstd", wide, {R}),
                     .x = w.input(wide, {R, D}),
                     .gate = w.input(data, {R, D}),
                     .weight = w.input(data, {D}),
                     .function = kSilu};
  if (whole > 0) {
    args.squares = w.input(wide, {R}, [n = whole](double normal) {
      return static_cast<double>(n) * (1 + 0.1 * std::tanh(normal));
    });
    args.whole = whole;
  }
  return use_of(gated_norm_forward, args, shape_text({R, D}));
}

KernelUse gated_gradient(Workbench& w, Normed normed) {
  const auto [R, D, whole] = NormedRows(w.sizes(), normed);
  const auto near_one = [](double normal) { return 1 + 0.1 * std::tanh(normal); };
  GatedNormGradArgs args{.dx = w.output("dx", data, {R, D}),
                         .dgate = w.output("dgate", data, {R, D}),
                         .dweight = w.updated("dweight", wide, {D}),
                         .y = w.output("y", data, {R, D}),
                         .dy = w.input(data, {R, D}),
                         .x = w.input(wide, {R, D}),
                         .rstd = w.input(wide, {R}, near_one),
                         .gate = w.input(data, {R, D}),
                         .weight = w.input(data, {D}),
                         .function = kSilu};
  if (whole > 0) {
    args.along = w.input(wide, {R}, [n = whole](double normal) {
      return std::sqrt(static_cast<double>(n)) * normal;
    });
    args.whole = whole;
  }
  return use_of(gated_norm_backward, args, shape_text({R, D}));
}

KernelUse squares(Workbench& w) {
  const auto [R, D, whole] = NormedRows(w.sizes(), Normed::half_token);
  return use_of(row_squares,
                {.squares = w.output("squares", wide, {R}), .x = w.input(wide, {R, D})},
                shape_text({R, D}));
}

KernelUse along(Workbench& w) {
  const auto [R, D, whole] = NormedRows(w.sizes(), Normed::half_token);
  return use_of(gated_norm_along,
                {.along = w.output("along", wide, {R}),
                 .dy = w.input(data, {R, D}),
                 .x = w.input(wide, {R, D}),
                 .gate = w.input(data, {R, D}),
                 .weight = w.input(data, {D}),
                 .function = kSilu},
                shape_text({R, D}));
}

}  // namespace

std::vector<KernelCase> around_mixer_cases() {
  std::vector<KernelCase> cases = {
      {"short_convolution_forward", "4 taps", convolution},
      {"short_convolution_backward", "4 taps", convolution_gradient},
      {"silu_forward", "", activation},
      {"silu_backward", "", activation_gradient},
  };
  for (const auto& [name, map] : {std::pair{"elu", FeatureMap::elu}, {"relu", FeatureMap::relu}}) {
    cases.push_back(
        {"feature_map_forward", name, [map = map](Workbench& w) { return features(w, map); }});
    cases.push_back({"feature_map_backward", name,
                     [map = map](Workbench& w) { return features_gradient(w, map); }});
  }
  cases.push_back({"unit_norm_forward", "", unit_rows});
  cases.push_back({"unit_norm_backward", "", unit_rows_gradient});
  for (const auto& [name, normed] : {std::pair{"a head a row", Normed::head},
                                     {"a token a row", Normed::token},
                                     {"half a token a row", Normed::half_token}}) {
    cases.push_back(
        {"gated_norm_forward", name, [n = normed](Workbench& w) { return gated(w, n); }});
    cases.push_back(
        {"gated_norm_backward", name, [n = normed](Workbench& w) { return gated_gradient(w, n); }});
  }
  cases.push_back({"row_squares", "half a token a row", squares});
  cases.push_back({"gated_norm_along", "half a token a row", along});
  cases.push_back({"fixed_decay", "", constant_decays});
  cases.push_back({"sigmoid_decay_forward", "", sigmoid_decays});
  cases.push_back({"sigmoid_decay_backward", "", sigmoid_decays_gradient});
  cases.push_back({"delta_gates_forward", "", delta_gates});
  cases.push_back({"delta_gates_backward", "", delta_gates_gradient});
  return cases;
}

}  // namespace weft
