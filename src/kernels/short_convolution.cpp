#include "src/kernels/short_convolution.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

void check_inputs(const Tensor& x, const Tensor& before, const Tensor& weight,
                  const Tensor& positions) {
  WEFT_CHECK(x.ndim == 3 && weight.ndim == 3 && weight.dim(2) >= 1 && weight.dim(2) <= kMostTaps,
             x.text(), " ", weight.text());
  WEFT_CHECK(weight.has_shape({x.dim(2), 1, weight.dim(2)}) && weight.dtype == x.dtype,
             weight.text(), " for ", x.text());
  WEFT_CHECK(!before || (before.has_shape({before.dim(0), x.dim(0), x.dim(2)}) &&
                         before.dim(0) < weight.dim(2) && before.dtype == x.dtype),
             before.text(), " before ", x.text());
  WEFT_CHECK(positions.has_shape({x.dim(0), x.dim(1)}) && positions.dtype == DType::i64,
             positions.text());
  check_contiguous({&x, &weight, &positions});
  if (before) check_contiguous({&before});
}

double taps(const Tensor& x, const Tensor& weight) {
  return static_cast<double>(x.numel() * weight.dim(2));
}

}  // namespace

Cost cost(const ShortConvolutionArgs& a) {
  return {2 * taps(a.x, a.weight) + 5.0 * a.x.numel(),
          bytes({&a.x, &a.before, &a.weight, &a.positions, &a.y})};
}
void short_convolution_forward(const ShortConvolutionArgs& args, Stream& stream) {
  check_inputs(args.x, args.before, args.weight, args.positions);
  check_same(args.y, args.x);
  check_contiguous({&args.y});
  WEFT_DISPATCH(short_convolution_forward, args, stream);
}

Cost cost(const ShortConvolutionGradArgs& a) {
  return {6 * taps(a.x, a.weight) + 9.0 * a.x.numel(),
          bytes({&a.dy, &a.x, &a.before, &a.weight, &a.positions, &a.dx, &a.dbefore, &a.dweight,
                 &a.dweight})};
}
void short_convolution_backward(const ShortConvolutionGradArgs& args, Stream& stream) {
  check_inputs(args.x, args.before, args.weight, args.positions);
  check_wide(args.dy, args.x);
  check_same(args.dx, args.dy);
  WEFT_CHECK(same_shape(args.dbefore, args.before) &&
                 (!args.dbefore || args.dbefore.dtype == args.dy.dtype),
             args.dbefore.text(), " for ", args.before.text());
  WEFT_CHECK(same_shape(args.dweight, args.weight), args.dweight.text());
  check_gradient(args.dweight, args.weight.dtype);
  check_contiguous({&args.dx, &args.dy, &args.dweight});
  if (args.dbefore) check_contiguous({&args.dbefore});
  WEFT_DISPATCH(short_convolution_backward, args, stream);
}

}  // namespace weft
