// The table of token mixers, one line each: a letter of model.layer_pattern and its maker.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "parallel/sequence/strategies.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

/// How one layer crosses the sequence axis, and its place on the tensor axis. A mixer takes what it
/// needs.
struct LayerStrategy {
  const AttentionStrategy* attention;
  const StateScanKind* scan;
  StateScanOptions scan_options;
  TensorPlace place = {};
};

struct MixerKind {
  char letter;
  const char* summary;  // one line for `weft strategies`
  std::unique_ptr<Layer> (*make)(int layer, const ModelConfig& config,
                                 const LayerStrategy& strategy);
};

std::span<const MixerKind> mixer_kinds();
/// Throws Error(config) for a letter that is not in the table.
const MixerKind& mixer_kind(char letter);

/// "model.layers.<layer>."
std::string layer_prefix(int layer);

}  // namespace weft
