// What stands between a projection and a state mixer: silu, feature maps of queries and keys, keys
// of length 1.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// y = x sigmoid(x).
struct SiluArgs {
  Tensor y, x;  // one shape, contiguous
};
Cost cost(const SiluArgs& args);
void silu_forward(const SiluArgs& args, Stream& stream);

struct SiluGradArgs {
  Tensor dx;  // like dy; may be dy
  Tensor dy;  // accumulator type of x
  Tensor x;
};
Cost cost(const SiluGradArgs& args);
void silu_backward(const SiluGradArgs& args, Stream& stream);

enum class FeatureMap {
  identity,
  elu,  // elu(x) + 1: x + 1 above 0, e^x below (Katharopoulos et al., arXiv 2006.16236)
  relu
};

/// x becomes its feature map, in place.
struct FeatureMapArgs {
  Tensor x;  // contiguous
  FeatureMap map = FeatureMap::identity;
};
Cost cost(const FeatureMapArgs& args);
void feature_map_forward(const FeatureMapArgs& args, Stream& stream);

/// The gradient of the features becomes that of what they were made of, in place.
struct FeatureMapGradArgs {
  Tensor dy;  // accumulator type of y
  Tensor y;   // the features: each map's slope follows from them
  FeatureMap map = FeatureMap::identity;
};
Cost cost(const FeatureMapGradArgs& args);
void feature_map_backward(const FeatureMapGradArgs& args, Stream& stream);

/// Rows of length 1, in place: x rnorm, rnorm = (sum x^2 + eps)^-1/2.
struct UnitNormArgs {
  Tensor x;      // [R, D], contiguous
  Tensor rnorm;  // out [R], accumulator type
  double eps = 1e-6;
};
Cost cost(const UnitNormArgs& args);
void unit_norm_forward(const UnitNormArgs& args, Stream& stream);

/// dx = rnorm (dy - y (y.dy)), in place.
struct UnitNormGradArgs {
  Tensor dy;     // [R, D], contiguous, accumulator type of y
  Tensor y;      // [R, D]: the rows of length 1
  Tensor rnorm;  // [R]
};
Cost cost(const UnitNormGradArgs& args);
void unit_norm_backward(const UnitNormGradArgs& args, Stream& stream);

namespace cpu {
void silu_forward(const SiluArgs& args);
void silu_backward(const SiluGradArgs& args);
void feature_map_forward(const FeatureMapArgs& args);
void feature_map_backward(const FeatureMapGradArgs& args);
void unit_norm_forward(const UnitNormArgs& args);
void unit_norm_backward(const UnitNormGradArgs& args);
}  // namespace cpu

namespace cuda {
void silu_forward(const SiluArgs& args, Stream& stream);
void silu_backward(const SiluGradArgs& args, Stream& stream);
void feature_map_forward(const FeatureMapArgs& args, Stream& stream);
void feature_map_backward(const FeatureMapGradArgs& args, Stream& stream);
void unit_norm_forward(const UnitNormArgs& args, Stream& stream);
void unit_norm_backward(const UnitNormGradArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
