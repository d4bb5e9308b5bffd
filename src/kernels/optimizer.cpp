#include "src/kernels/optimizer.hpp"

#include <initializer_list>

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_scalar(const Tensor& t) {
  WEFT_CHECK(t.has_shape({1}) && t.dtype == DType::f64, t.text());
}

/// One shape and type, contiguous.
void check_alike(std::initializer_list<const Tensor*> tensors) {
  const Tensor& first = **tensors.begin();
  for (const Tensor* t : tensors) {
    WEFT_CHECK(same_shape(*t, first) && t->dtype == first.dtype && t->contiguous(), t->text(),
               " for ", first.text());
  }
}

}  // namespace

Cost cost(const BeginNormArgs& a) {
  return {0, 2.0 * a.squared_norm.nbytes() + a.loss_sum.nbytes()};
}

void begin_norm(const BeginNormArgs& args, Stream& stream) {
  check_scalar(args.squared_norm);
  check_scalar(args.loss_sum);
  WEFT_DISPATCH(begin_norm, args, stream);
}

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
  check_alike({&args.param, &args.m, &args.v, &args.grad});
  WEFT_CHECK(args.step >= 1, "step ", args.step);
  WEFT_DISPATCH(adamw, args, stream);
}

Cost cost(const NesterovArgs& a) {
  return {5.0 * a.grad.numel(), 4.0 * a.grad.nbytes()};
}

void nesterov(const NesterovArgs& args, Stream& stream) {
  check_scalar(args.squared_norm);
  check_alike({&args.update, &args.m, &args.grad});
  WEFT_DISPATCH(nesterov, args, stream);
}

Cost cost(const DecayedStepArgs& a) {
  return {4.0 * a.param.numel(), 3.0 * a.param.nbytes()};
}

void decayed_step(const DecayedStepArgs& args, Stream& stream) {
  check_scalar(args.squared_norm);
  check_alike({&args.param, &args.update});
  WEFT_DISPATCH(decayed_step, args, stream);
}

Cost cost(const NormalizeArgs& a) {
  return {1.0 * a.x.numel(), 2.0 * a.x.nbytes()};
}

void normalize(const NormalizeArgs& args, Stream& stream) {
  check_scalar(args.squared_sum);
  check_alike({&args.x});
  WEFT_DISPATCH(normalize, args, stream);
}

Cost cost(const AddScaledArgs& a) {
  return {2.0 * a.y.numel(), 3.0 * a.y.nbytes()};
}

void add_scaled(const AddScaledArgs& args, Stream& stream) {
  check_alike({&args.y, &args.x});
  WEFT_DISPATCH(add_scaled, args, stream);
}

}  // namespace weft
