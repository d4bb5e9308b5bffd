#include "src/kernels/decay_gates.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

/// A parameter with an entry a column.
void check_column(const Tensor& parameter, const Tensor& x) {
  WEFT_CHECK(x.ndim == 2 && parameter.has_shape({x.dim(1)}) && parameter.dtype == x.dtype,
             parameter.text(), " for ", x.text());
}

void check_column_gradient(const Tensor& gradient, const Tensor& parameter) {
  WEFT_CHECK(same_shape(gradient, parameter), gradient.text());
  check_gradient(gradient, parameter.dtype);
}

}  // namespace

Cost cost(const FixedDecayArgs& a) {
  return {0.0, bytes({&a.log_decay})};
}
void fixed_decay(const FixedDecayArgs& args, Stream& stream) {
  WEFT_CHECK(args.log_decay.has_shape({std::ssize(*args.values)}), args.log_decay.text());
  WEFT_DISPATCH(fixed_decay, args, stream);
}

Cost cost(const SigmoidDecayArgs& a) {
  return {8.0 * a.x.numel(), bytes({&a.x, &a.bias, &a.log_decay})};
}
void sigmoid_decay_forward(const SigmoidDecayArgs& args, Stream& stream) {
  check_wide(args.log_decay, args.x);
  check_column(args.bias, args.x);
  check_contiguous({&args.log_decay, &args.x});
  WEFT_DISPATCH(sigmoid_decay_forward, args, stream);
}

Cost cost(const SigmoidDecayGradArgs& a) {
  return {8.0 * a.x.numel(), bytes({&a.x, &a.bias, &a.dlog_decay, &a.dx, &a.dbias, &a.dbias})};
}
void sigmoid_decay_backward(const SigmoidDecayGradArgs& args, Stream& stream) {
  check_wide(args.dlog_decay, args.x);
  check_same(args.dx, args.x);
  check_column(args.bias, args.x);
  check_column_gradient(args.dbias, args.bias);
  check_contiguous({&args.dx, &args.dlog_decay, &args.x});
  WEFT_DISPATCH(sigmoid_decay_backward, args, stream);
}

Cost cost(const DeltaGatesArgs& a) {
  return {16.0 * a.a.numel(), bytes({&a.a, &a.b, &a.a_log, &a.dt_bias, &a.log_decay, &a.beta})};
}
void delta_gates_forward(const DeltaGatesArgs& args, Stream& stream) {
  check_same(args.b, args.a);
  for (const Tensor* gate : {&args.log_decay, &args.beta}) check_wide(*gate, args.a);
  for (const Tensor* column : {&args.a_log, &args.dt_bias}) check_column(*column, args.a);
  check_contiguous({&args.log_decay, &args.beta, &args.a, &args.b});
  WEFT_DISPATCH(delta_gates_forward, args, stream);
}

Cost cost(const DeltaGatesGradArgs& a) {
  return {20.0 * a.a.numel(),
          bytes({&a.a, &a.b, &a.a_log, &a.dt_bias, &a.log_decay, &a.dlog_decay, &a.dbeta, &a.da,
                 &a.db, &a.da_log, &a.da_log, &a.ddt_bias, &a.ddt_bias})};
}
void delta_gates_backward(const DeltaGatesGradArgs& args, Stream& stream) {
  for (const Tensor* like : {&args.b, &args.da, &args.db}) check_same(*like, args.a);
  for (const Tensor* gate : {&args.log_decay, &args.dlog_decay, &args.dbeta}) {
    check_wide(*gate, args.a);
  }
  for (const Tensor* column : {&args.a_log, &args.dt_bias}) check_column(*column, args.a);
  check_column_gradient(args.da_log, args.a_log);
  check_column_gradient(args.ddt_bias, args.dt_bias);
  check_contiguous(
      {&args.da, &args.db, &args.log_decay, &args.dlog_decay, &args.dbeta, &args.a, &args.b});
  WEFT_DISPATCH(delta_gates_backward, args, stream);
}

}  // namespace weft
