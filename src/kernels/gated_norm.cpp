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

/// A sum a row over wholes of `whole` columns, where there is one.
void check_sums(const Tensor& sums, int64_t whole, const Tensor& x) {
  if (!sums) return;
  WEFT_CHECK(sums.has_shape({x.dim(0)}) && sums.dtype == x.dtype && whole >= x.dim(1), sums.text(),
             " over ", whole, " for ", x.text());
  check_contiguous({&sums});
}

}  // namespace

Cost cost(const GatedNormArgs& a) {
  return {(a.gate ? 10.0 : 4.0) * a.x.numel(),
          bytes({&a.x, &a.gate, &a.weight, &a.squares, &a.y, &a.rstd})};
}
void gated_norm_forward(const GatedNormArgs& args, Stream& stream) {
  check_rows(args.x, args.rstd, args.weight, args.y.dtype);
  check_wide(args.x, args.y);
  check_gate(args.gate, args.function, args.y);
  check_sums(args.squares, args.whole, args.x);
  check_contiguous({&args.y});
  WEFT_DISPATCH(gated_norm_forward, args, stream);
}

Cost cost(const GatedNormGradArgs& a) {
  return {(a.gate ? 22.0 : 12.0) * a.x.numel(),
          bytes({&a.dy, &a.x, &a.rstd, &a.gate, &a.weight, &a.along, &a.dx, &a.dgate, &a.y,
                 &a.dweight, &a.dweight})};
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
  check_sums(args.along, args.whole, args.x);
  check_contiguous({&args.dx, &args.y, &args.dy, &args.dweight});
  WEFT_DISPATCH(gated_norm_backward, args, stream);
}

Cost cost(const RowSquaresArgs& a) {
  return {2.0 * a.x.numel(), bytes({&a.x, &a.squares})};
}
void row_squares(const RowSquaresArgs& args, Stream& stream) {
  WEFT_CHECK(args.x.ndim == 2 && args.squares.has_shape({args.x.dim(0)}) &&
                 args.squares.dtype == args.x.dtype,
             args.squares.text(), " of ", args.x.text());
  check_contiguous({&args.x, &args.squares});
  WEFT_DISPATCH(row_squares, args, stream);
}

Cost cost(const GatedNormAlongArgs& a) {
  return {(a.gate ? 8.0 : 4.0) * a.x.numel(), bytes({&a.dy, &a.x, &a.gate, &a.weight, &a.along})};
}
void gated_norm_along(const GatedNormAlongArgs& args, Stream& stream) {
  check_rows(args.x, args.along, args.weight, args.dy.dtype);
  check_wide(args.x, args.dy);
  check_gate(args.gate, args.function, args.dy);
  check_contiguous({&args.dy});
  WEFT_DISPATCH(gated_norm_along, args, stream);
}

}  // namespace weft
