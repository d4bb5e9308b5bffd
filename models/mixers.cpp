#include "models/mixers.hpp"

#include "models/projected_attention.hpp"
#include "models/softmax_attention.hpp"

namespace weft {
namespace {

std::unique_ptr<Layer> make_softmax(int layer, const ModelConfig& config,
                                    const AttentionStrategy& strategy) {
  return std::make_unique<SoftmaxAttention>(layer_prefix(layer) + "self_attn.", layer, config,
                                            strategy.make());
}

std::unique_ptr<Layer> make_window(int layer, const ModelConfig& config, const AttentionStrategy&) {
  return std::make_unique<SoftmaxAttention>(layer_prefix(layer) + "self_attn.", layer, config,
                                            make_windowed_attention(), config.window_of(layer));
}

std::unique_ptr<Layer> make_projected(int layer, const ModelConfig& config,
                                      const AttentionStrategy&) {
  return std::make_unique<ProjectedAttention>(layer_prefix(layer) + "self_attn.", layer, config);
}

constexpr MixerKind kMixers[] = {
    {'*', "softmax attention: grouped queries, rotary positions", make_softmax},
    {'W', "the same in a sliding window of model.window keys, whose halo crosses ranks",
     make_window},
    {'P', "the same over model.projected_keys learned mixtures of all keys, summed over the ranks",
     make_projected},
};

}  // namespace

std::span<const MixerKind> mixer_kinds() {
  return kMixers;
}

const MixerKind& mixer_kind(char letter) {
  std::string known;
  for (const MixerKind& kind : kMixers) {
    if (kind.letter == letter) return kind;
    known += concat(known.empty() ? "" : ", ", kind.letter);
  }
  throw Error(ExitCode::config,
              concat("model.layer_pattern: expected letters of ", known, ", got '", letter, "'"));
}

std::string layer_prefix(int layer) {
  return concat("model.layers.", layer, ".");
}

}  // namespace weft
