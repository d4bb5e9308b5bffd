// Families of state mixers: what one linear-attention layer has and another has not. A new one is a
// file below models/families, its declaration at the end of this header and a line in
// state_family.cpp.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "parallel/tensor/tensor_place.hpp"
#include "src/kernels/gated_norm.hpp"
#include "src/kernels/state_mixer.hpp"

namespace weft {

struct StateFamily;

/// What a config makes of a family for its layers.
struct StateLayout {
  const StateFamily* family = nullptr;
  int64_t heads = 0, key_dim = 0, value_dim = 0;  // all heads; K, V
  int64_t taps = 0;                               // W of the short convolution; 0: none
  FeatureMap feature_map = FeatureMap::identity;
  GateFunction output_gate = GateFunction::none;

  double scale() const;  // of queries
};

/// What a token does to the state besides its key and value, in the accumulator type.
struct DecayValues {
  Tensor log_decay;  // [B, T, H], of vector decay [B, T, H, K]
  Tensor beta;       // [B, T, H]; delta only
};

/// Makes the gates of a family whose decay depends on the token, from x [R, C]; H are the rank's
/// heads.
class DecayGate {
 public:
  virtual ~DecayGate() = default;

  /// Widths of the activations [R, width] that forward leaves for backward; 0: there is none.
  virtual std::array<int64_t, 2> widths() const = 0;
  /// Overwrites the activations and the values.
  virtual void forward(const DecayValues& values, const std::array<Tensor, 2>& activations,
                       const Tensor& x, StepContext& ctx) const = 0;
  /// Adds to dx [R, C] and to the parameters' gradients. `values` are the forward's.
  virtual void backward(const Tensor& dx, const DecayValues& gradients, const DecayValues& values,
                        const std::array<Tensor, 2>& activations, const Tensor& x,
                        StepContext& ctx) const = 0;
  virtual void visit(const std::function<void(Parameter&)>& f) = 0;
};

struct StateFamily {
  const char* name;     // as in model.linear.family
  const char* summary;  // one line for `weft strategies`
  StateKind kind;
  // What the layer has unless the config says otherwise.
  double expand_k = 1, expand_v = 1;  // H K and H V, by hidden_size
  int64_t taps = 0;
  FeatureMap feature_map = FeatureMap::identity;
  GateFunction output_gate = GateFunction::silu;
  // What makes the family.
  bool silu = false;       // of q, k and v, where no convolution brings its own
  bool rotary = false;     // q and k turn with their positions
  bool unit_keys = false;  // q and k have length 1
  bool scaled = true;      // queries by K^-1/2
  bool norm_heads = true;  // the output's norm is over a head; else over the whole token
  /// Of kind fixed: log alpha by head, of all heads, of layer `layer` of `layers`.
  std::vector<double> (*fixed_log_decay)(int64_t layer, int64_t layers, int64_t heads) = nullptr;
  /// Of kinds scalar, vector and delta, for the heads of a rank. Names of parameters begin with
  /// `prefix`.
  std::unique_ptr<DecayGate> (*make_gate)(const std::string& prefix, const ModelConfig& config,
                                          const StateLayout& layout,
                                          const TensorPlace& place) = nullptr;
};

/// Those of letter L, by model.linear.family.
std::span<const StateFamily* const> linear_families();
/// Null where there is none of that name.
const StateFamily* find_linear_family(std::string_view name);

/// The layout of the layers of a letter, L or G, of a valid config.
StateLayout state_layout(const ModelConfig& config, char letter);

// One a file.
extern const StateFamily kBasicFamily;
extern const StateFamily kLightningFamily;
extern const StateFamily kRetentionFamily;
extern const StateFamily kSimpleGlaFamily;
extern const StateFamily kGlaFamily;
extern const StateFamily kGatedDeltaFamily;

}  // namespace weft
