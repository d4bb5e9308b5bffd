#include "src/kernels/loss.hpp"

#include "src/kernels/dispatch.hpp"

namespace weft {

Cost cost(const CrossEntropyArgs& a) {
  const double passes = a.gradient ? 2 : 1;
  return {4.0 * a.logits.numel(),
          passes * static_cast<double>(a.logits.nbytes()) + static_cast<double>(a.labels.nbytes())};
}

void cross_entropy(const CrossEntropyArgs& args, Stream& stream) {
  WEFT_CHECK(args.logits.ndim == 2 && args.labels.has_shape({args.logits.dim(0)}),
             args.logits.text(), " ", args.labels.text());
  WEFT_CHECK(args.loss_sum.has_shape({1}) && args.loss_sum.dtype == DType::f64,
             args.loss_sum.text());
  WEFT_DISPATCH(cross_entropy, args, stream);
}

}  // namespace weft
