// Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's layout: element i of a
// head turns with element i + D/2.
#pragma once

#include <optional>
#include <vector>

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// rope_type "llama3": slow frequencies are divided by `factor`, fast ones stay, in between they
/// are blended by the number of turns within the original context.
struct Llama3Scaling {
  double factor = 8.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position_embeddings = 8192;
};

struct RopeConfig {
  double theta = 10000.0;
  std::optional<Llama3Scaling> llama3;
};

/// The D/2 angular frequencies, in radians a token.
std::vector<double> rope_frequencies(const RopeConfig& config, int64_t head_dim);

/// cos and sin of position x frequency. Angles are formed and reduced in f64, whatever the dtype:
/// in f32 a position of half a million is off by 0.03 rad.
struct RopeTableArgs {
  Tensor cos, sin;                                   // [B, T, D/2], written
  Tensor positions;                                  // [B, T] i64, inside the document
  const std::vector<double>* frequencies = nullptr;  // D/2; outlives the call's execution
};
Cost cost(const RopeTableArgs& args);
void rope_table(const RopeTableArgs& args, Stream& stream);

/// Rotates every head of x in place. `inverse` turns back: the adjoint, for gradients.
struct RopeArgs {
  Tensor x;         // [B, T, heads, D], in place; strides as they come, innermost 1
  Tensor cos, sin;  // [B, T, D/2], accumulator type of x
  bool inverse = false;
};
Cost cost(const RopeArgs& args);
void rope(const RopeArgs& args, Stream& stream);

namespace cpu {
void rope_table(const RopeTableArgs& args);
void rope(const RopeArgs& args);
}  // namespace cpu

namespace cuda {
void rope_table(const RopeTableArgs& args, Stream& stream);
void rope(const RopeArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
