#include "src/kernels/optimizer.hpp"

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_scalar(const Tensor& t) {
  WEFT_CHECK(t.has_shape({1}) && t.dtype == DType::f64, t.text());
}

}  // namespace

Cost cost(const SquaredSumArgs& a) {
  return {2.0 * a.x.numel(), 1.0 * a.x.nbytes()};
}

void squared_sum(const SquaredSumArgs& args, Stream& stream) {
  check_scalar(args.total);
  WEFT_CHECK(args.x.contiguous(), args.x.text());
  WEFT_DISPATCH(squared_sum, args, stream);
}

Cost cost(const AdamWArgs& a) {
  return {14.0 * a.param.numel(),
          2.0 * (a.param.nbytes() + a.m.nbytes() + a.v.nbytes()) + a.grad.nbytes()};
}

void adamw(const AdamWArgs& args, Stream& stream) {
  check_scalar(args.squared_norm);
  for (const Tensor* t : {&args.param, &args.m, &args.v, &args.grad}) {
    WEFT_CHECK(same_shape(*t, args.param) && t->dtype == args.param.dtype && t->contiguous(),
               t->text(), " for ", args.param.text());
  }
  WEFT_CHECK(args.step >= 1, "step ", args.step);
  WEFT_DISPATCH(adamw, args, stream);
}

}  // namespace weft
