#include "src/kernels/softmax.hpp"

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_rows(const Tensor& rows, const Tensor& scores) {
  WEFT_CHECK(rows.has_shape({scores.dim(0), scores.dim(1), scores.dim(2)}) &&
                 rows.dtype == scores.dtype && rows.stride[2] == 1,
             rows.text(), " for ", scores.text());
}

void check_intervals(const Tensor& key_begin, const Tensor& key_end, const Tensor& scores) {
  WEFT_CHECK(key_begin.has_shape({scores.dim(0), scores.dim(2)}) && same_shape(key_begin, key_end),
             key_begin.text(), " for ", scores.text());
}

}  // namespace

Cost cost(const SoftmaxArgs& a) {
  return {5.0 * a.scores.numel(),
          static_cast<double>(2 * a.scores.nbytes() + a.lse.nbytes() + 2 * a.key_begin.nbytes())};
}
void softmax_forward(const SoftmaxArgs& args, Stream& stream) {
  WEFT_CHECK(args.scores.ndim == 4 && args.scores.stride[3] == 1, args.scores.text());
  check_rows(args.lse, args.scores);
  check_intervals(args.key_begin, args.key_end, args.scores);
  WEFT_DISPATCH(softmax_forward, args, stream);
}

Cost cost(const SoftmaxGradArgs& a) {
  return {4.0 * a.probs.numel(), static_cast<double>(4 * a.probs.nbytes() + 2 * a.lse.nbytes() +
                                                     2 * a.key_begin.nbytes())};
}
void softmax_backward(const SoftmaxGradArgs& args, Stream& stream) {
  WEFT_CHECK(args.probs.ndim == 4 && same_shape(args.probs, args.dscores) &&
                 args.probs.dtype == args.dscores.dtype && args.probs.stride[3] == 1 &&
                 args.dscores.stride[3] == 1,
             args.probs.text(), args.dscores.text());
  check_rows(args.lse, args.probs);
  check_rows(args.delta, args.probs);
  check_intervals(args.key_begin, args.key_end, args.probs);
  WEFT_DISPATCH(softmax_backward, args, stream);
}

}  // namespace weft
