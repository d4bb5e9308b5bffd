#include "models/state_family.hpp"

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

constexpr const StateFamily* kLinearFamilies[] = {
    &kBasicFamily, &kLightningFamily, &kRetentionFamily, &kSimpleGlaFamily, &kGlaFamily,
};

/// The width of a head when all of them have `expand` times the model's width.
int64_t expanded(double expand, const ModelConfig& config, int64_t heads) {
  return std::llround(expand * static_cast<double>(config.hidden_size) /
                      static_cast<double>(heads));
}

StateLayout linear_layout(const ModelConfig& config) {
  const LinearConfig& linear = config.linear;
  const StateFamily* family = find_linear_family(linear.family.value_or(""));
  WEFT_CHECK(family != nullptr, "no family of linear attention");
  StateLayout layout{.family = family,
                     .heads = linear.num_heads.value_or(config.num_attention_heads)};
  layout.key_dim = expanded(linear.expand_k.value_or(family->expand_k), config, layout.heads);
  layout.value_dim = expanded(linear.expand_v.value_or(family->expand_v), config, layout.heads);
  layout.taps = linear.short_conv.value_or(family->taps);
  layout.feature_map = linear.feature_map.value_or(family->feature_map);
  layout.output_gate = family->output_gate;
  if (linear.output_gate) {
    const bool has_own = family->output_gate != GateFunction::none;
    const GateFunction gate = has_own ? family->output_gate : GateFunction::silu;
    layout.output_gate = *linear.output_gate ? gate : GateFunction::none;
  }
  return layout;
}

StateLayout delta_layout(const ModelConfig& config) {
  const DeltaConfig& delta = config.delta;
  const StateFamily& family = kGatedDeltaFamily;
  StateLayout layout{.family = &family,
                     .heads = delta.num_heads.value_or(config.num_attention_heads),
                     .key_dim = delta.head_dim.value_or(config.head_dim)};
  layout.value_dim =
      std::llround(delta.expand_v.value_or(family.expand_v) * static_cast<double>(layout.key_dim));
  layout.taps = delta.short_conv.value_or(family.taps);
  layout.output_gate = delta.output_gate.value_or(true) ? family.output_gate : GateFunction::none;
  return layout;
}

}  // namespace

double StateLayout::scale() const {
  return family->scaled ? 1 / std::sqrt(static_cast<double>(key_dim)) : 1.0;
}

std::span<const StateFamily* const> linear_families() {
  return kLinearFamilies;
}

const StateFamily* find_linear_family(std::string_view name) {
  const auto found = std::find_if(std::begin(kLinearFamilies), std::end(kLinearFamilies),
                                  [&](const StateFamily* family) { return name == family->name; });
  return found == std::end(kLinearFamilies) ? nullptr : *found;
}

StateLayout state_layout(const ModelConfig& config, char letter) {
  return letter == 'G' ? delta_layout(config) : linear_layout(config);
}

}  // namespace weft
