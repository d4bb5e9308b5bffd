#include "models/mixers.hpp"

#include "models/projected_attention.hpp"
#include "models/softmax_attention.hpp"
#include "models/state_mixer.hpp"

namespace weft {
namespace {

std::unique_ptr<Layer> make_softmax(int layer, const ModelConfig& config,
                                    const LayerStrategy& strategy) {
  return std::make_unique<SoftmaxAttention>(layer_prefix(layer) + "self_attn.", layer, config,
                                            strategy.place, strategy.attention->make());
}

std::unique_ptr<Layer> make_window(int layer, const ModelConfig& config,
                                   const LayerStrategy& strategy) {
  return std::make_unique<SoftmaxAttention>(layer_prefix(layer) + "self_attn.", layer, config,
                                            strategy.place, make_windowed_attention(),
                                            config.window_of(layer));
}

std::unique_ptr<Layer> make_projected(int layer, const ModelConfig& config,
                                      const LayerStrategy& strategy) {
  return std::make_unique<ProjectedAttention>(layer_prefix(layer) + "self_attn.", layer, config,
                                              strategy.place);
}

/// Of the letter.
template <char letter>
std::unique_ptr<Layer> make_state_mixer(int layer, const ModelConfig& config,
                                        const LayerStrategy& strategy) {
  return std::make_unique<StateMixer>(layer_prefix(layer) + "linear_attn.", layer, config,
                                      state_layout(config, letter), strategy.place,
                                      strategy.scan->make(strategy.scan_options));
}

constexpr MixerKind kMixers[] = {
    {'*', "softmax attention: grouped queries, rotary positions", make_softmax},
    {'W', "the same in a sliding window of model.window keys, whose halo crosses ranks",
     make_window},
    {'P', "the same over model.projected_keys learned mixtures of all keys, summed over the ranks",
     make_projected},
    {'L', "linear attention of model.linear.family: a state a head in place of all keys and values",
     make_state_mixer<'L'>},
    {'G', "the gated delta rule: a state that forgets what a key reads before it writes",
     make_state_mixer<'G'>},
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
