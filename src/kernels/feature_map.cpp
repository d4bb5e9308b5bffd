#include "src/kernels/feature_map.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {

Cost cost(const SiluArgs& a) {
  return {5.0 * a.y.numel(), bytes({&a.x, &a.y})};
}
void silu_forward(const SiluArgs& args, Stream& stream) {
  check_same(args.y, args.x);
  check_contiguous({&args.y, &args.x});
  WEFT_DISPATCH(silu_forward, args, stream);
}

Cost cost(const SiluGradArgs& a) {
  return {9.0 * a.dy.numel(), bytes({&a.dy, &a.x, &a.dx})};
}
void silu_backward(const SiluGradArgs& args, Stream& stream) {
  check_wide(args.dy, args.x);
  check_same(args.dx, args.dy);
  check_contiguous({&args.dx, &args.dy, &args.x});
  WEFT_DISPATCH(silu_backward, args, stream);
}

Cost cost(const FeatureMapArgs& a) {
  return {2.0 * a.x.numel(), bytes({&a.x, &a.x})};
}
void feature_map_forward(const FeatureMapArgs& args, Stream& stream) {
  check_contiguous({&args.x});
  if (args.map == FeatureMap::identity) return;
  WEFT_DISPATCH(feature_map_forward, args, stream);
}

Cost cost(const FeatureMapGradArgs& a) {
  return {2.0 * a.dy.numel(), bytes({&a.dy, &a.dy, &a.y})};
}
void feature_map_backward(const FeatureMapGradArgs& args, Stream& stream) {
  check_wide(args.dy, args.y);
  check_contiguous({&args.dy, &args.y});
  if (args.map == FeatureMap::identity) return;
  WEFT_DISPATCH(feature_map_backward, args, stream);
}

Cost cost(const UnitNormArgs& a) {
  return {3.0 * a.x.numel(), bytes({&a.x, &a.x, &a.rnorm})};
}
void unit_norm_forward(const UnitNormArgs& args, Stream& stream) {
  WEFT_CHECK(args.x.ndim == 2 && args.rnorm.has_shape({args.x.dim(0)}) &&
                 args.rnorm.dtype == accumulator_of(args.x.dtype),
             args.x.text(), " ", args.rnorm.text());
  check_contiguous({&args.x, &args.rnorm});
  WEFT_DISPATCH(unit_norm_forward, args, stream);
}

Cost cost(const UnitNormGradArgs& a) {
  return {5.0 * a.dy.numel(), bytes({&a.dy, &a.dy, &a.y, &a.rnorm})};
}
void unit_norm_backward(const UnitNormGradArgs& args, Stream& stream) {
  check_wide(args.dy, args.y);
  WEFT_CHECK(args.y.ndim == 2 && args.rnorm.has_shape({args.y.dim(0)}), args.y.text(), " ",
             args.rnorm.text());
  check_contiguous({&args.dy, &args.y, &args.rnorm});
  WEFT_DISPATCH(unit_norm_backward, args, stream);
}

}  // namespace weft
