#include "src/kernels/state_combine.hpp"

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_state(const Tensor& state, const Tensor& out) {
  WEFT_CHECK(same_shape(state, out) && state.dtype == out.dtype && state.stride[2] == 1,
             state.text(), " for ", out.text());
}

void check_transition(const Tensor& transition, const Tensor& out) {
  if (!transition) return;
  const int64_t R = out.dim(0), K = out.dim(1);
  WEFT_CHECK(
      transition.has_shape({R}) || transition.has_shape({R, K}) || transition.has_shape({R, K, K}),
      transition.text(), " for ", out.text());
  WEFT_CHECK(transition.dtype == out.dtype && transition.contiguous(), transition.text(), " for ",
             out.text());
}

}  // namespace

Cost cost(const StateCombineArgs& a) {
  const int64_t terms = a.transition.ndim == 3 ? a.out.dim(1) : 1;  // of an element's sum
  int64_t bytes = a.out.nbytes() + a.entering.nbytes();
  if (a.transition) bytes += a.transition.nbytes();
  if (a.local) bytes += a.local.nbytes();
  return {2.0 * static_cast<double>(terms * a.out.numel()), static_cast<double>(bytes)};
}

void state_combine(const StateCombineArgs& args, Stream& stream) {
  WEFT_CHECK(args.out.ndim == 3 && args.out.stride[2] == 1, args.out.text());
  check_state(args.entering, args.out);
  if (args.local) check_state(args.local, args.out);
  check_transition(args.transition, args.out);
  WEFT_DISPATCH(state_combine, args, stream);
}

}  // namespace weft
