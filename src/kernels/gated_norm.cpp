#include "src/kernels/gated_norm.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_gate(const Tensor& gate, GateFunction function, const Tensor& like) {
  if (function == GateFunction::none) {
    WEFT_CHECK(!gate, gate.text(), " for no gate");
  } else {
    check_same(gate, like);
    check_contiguous({&gate});
  }
}

void check_rows(const Tensor& x, const Tensor& rstd, const Tensor& weight, DType dtype) {
  WEFT_CHECK(x.ndim == 2 && weight.has_shape({x.dim(1)}) && weight.dtype == dtype, x.text(), " ",
             weight.text());
  WEFT_CHECK(rstd.has_shape({x.dim(0)}) && rstd.dtype == x.dtype, rstd.text());
  check_contiguous({&x, &rstd, &weight});
}

}  // namespace

Cost cost(const GatedNormArgs& a) {
  return {(a.gate ? 10.0 : 4.0) * a.x.numel(), bytes({&a.x, &a.gate, &a.weight, &a.y, &a.rstd})};
}
void gated_norm_forward(const GatedNormArgs& args, Stream& stream) {
  check_rows(args.x, args.rstd, args.weight, args.y.dtype);
  check_wide(args.x, args.y);
  check_gate(args.gate, args.function, args.y);
  check_contiguous({&args.y});
  WEFT_DISPATCH(gated_norm_forward, args, stream);
}

Cost cost(const GatedNormGradArgs& a) {
  return {(a.gate ? 22.0 : 12.0) * a.x.numel(),
          bytes({&a.dy, &a.x, &a.rstd, &a.gate, &a.weight, &a.dx, &a.dgate, &a.y, &a.dweight,
                 &a.dweight})};
}
void gated_norm_backward(const GatedNormGradArgs& args, Stream& stream) {
  check_rows(args.x, args.rstd, args.weight, args.dy.dtype);
  check_wide(args.x, args.dy);
  check_same(args.dx, args.dy);
  check_same(args.y, args.dy);
  check_gate(args.gate, args.function, args.dy);
  check_gate(args.dgate, args.function, args.dy);
  WEFT_CHECK(same_shape(args.dweight, args.weight), args.dweight.text());
  check_gradient(args.dweight, args.weight.dtype);
  check_contiguous({&args.dx, &args.y, &args.dy, &args.dweight});
  WEFT_DISPATCH(gated_norm_backward, args, stream);
}

}  // namespace weft
