#include "launch/deterministic_cost.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "launch/kernels_bench.hpp"
#include "launch/trainer.hpp"
#include "src/core/cuda/timer.hpp"

namespace weft {
namespace {

const KernelCase& backward_case(std::string_view form) {
  for (const KernelCase& one : kernel_cases()) {
    if (std::string_view(one.kernel) == "attention_backward" && one.form == form) return one;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no case '", form, "'"));
}

/// The median of a few calls, after one to warm up.
double seconds_of(const KernelUse& use, Stream& stream) {
  const auto call = [&] { use.call(stream); };
  call();
  std::vector<double> seconds(5);
  for (double& s : seconds) s = cuda::seconds_of(stream, call);
  return median(std::move(seconds));
}

}  // namespace

bool has_other_backward(const Config& config) {
  return config.train.device == DeviceChoice::cuda && config.train.precision == DType::bf16 &&
         config.model.mixers("*WP", config.model.num_hidden_layers) > 0;
}

KernelSizes sizes_of_backward(const Config& config) {
  constexpr int64_t kTokens = 8192;  // of a card of 132 multiprocessors, with a few heads
  const AttentionSetting setting = attention_setting(config, config.mesh.along(Axis::sequence));
  const int64_t tokens = std::clamp<int64_t>(setting.cuts.largest(), 1, kTokens);
  return {.batch = std::clamp<int64_t>(kTokens / tokens, 1, setting.batch),
          .heads = setting.heads,
          .kv_heads = setting.kv_heads,
          .head_dim = setting.head_dim,
          .attention_tokens = tokens};
}

std::string text(const BackwardTimes& times, double backward_flops, double products_s) {
  const double extra_s = times.extra_s(backward_flops);
  return fmt::format(
      "weft: deterministic: own kernels take {:.2f} ms for attention's backward pass ({}, causal) "
      "where cuDNN takes {:.2f}: up to {:.1f} ms a step more, {:.0f} % of what its FLOPs take at "
      "the rate of products",
      1e3 * times.own_s, times.shape, 1e3 * times.cudnn_s, 1e3 * extra_s,
      100 * extra_s / products_s);
}

BackwardTimes measure_backward(const Config& config, const World& world) {
  const DType dtype = config.train.precision;
  const Workbench::Setting setting{world.device(), dtype, dtype, sizes_of_backward(config)};
  const KernelPlan plan = plan_kernel(backward_case("causal"), setting);
  const auto stream = world.make_compute_stream();
  Arena arena("attention's backward pass", world.device(), plan.bytes, stream.get());
  const auto measure = [&](std::string_view form) {
    const Scope scope(arena);
    Workbench bench(setting, arena, *stream);
    return seconds_of(backward_case(form).make(bench), *stream);
  };
  return {.shape = plan.shape,
          .flops = plan.call.cost.flops,
          .own_s = measure("causal, deterministic"),
          .cudnn_s = measure("causal")};
}

}  // namespace weft
