#include "src/kernels/pointwise.hpp"

#include "src/kernels/checks.hpp"
#include "src/kernels/dispatch.hpp"

namespace weft {

Cost cost(const RmsNormArgs& a) {
  return {4.0 * a.x.numel(), bytes({&a.x, &a.weight, &a.y, &a.rstd})};
}
void rmsnorm_forward(const RmsNormArgs& args, Stream& stream) {
  check_same(args.y, args.x);
  WEFT_CHECK(args.x.ndim == 2 && args.weight.has_shape({args.x.dim(1)}), args.weight.text());
  WEFT_CHECK(
      args.rstd.has_shape({args.x.dim(0)}) && args.rstd.dtype == accumulator_of(args.x.dtype),
      args.rstd.text());
  WEFT_DISPATCH(rmsnorm_forward, args, stream);
}

Cost cost(const RmsNormGradArgs& a) {
  return {10.0 * a.x.numel(),
          bytes({&a.dy, &a.x, &a.rstd, &a.weight, &a.dx, &a.dx, &a.dweight, &a.dweight})};
}
void rmsnorm_backward(const RmsNormGradArgs& args, Stream& stream) {
  check_same(args.dx, args.x);
  check_same(args.dy, args.x);
  WEFT_CHECK(same_shape(args.dweight, args.weight), args.dweight.text());
  check_gradient(args.dweight, args.weight.dtype);
  WEFT_CHECK(args.x.ndim == 2 && args.weight.has_shape({args.x.dim(1)}), args.weight.text());
  WEFT_CHECK(args.rstd.has_shape({args.x.dim(0)}), args.rstd.text());
  WEFT_DISPATCH(rmsnorm_backward, args, stream);
}

Cost cost(const SwigluArgs& a) {
  return {6.0 * a.y.numel(), bytes({&a.gate, &a.up, &a.y})};
}
void swiglu_forward(const SwigluArgs& args, Stream& stream) {
  check_same(args.y, args.gate);
  check_same(args.y, args.up);
  check_contiguous({&args.y, &args.gate, &args.up});
  WEFT_DISPATCH(swiglu_forward, args, stream);
}

Cost cost(const SwigluGradArgs& a) {
  return {14.0 * a.dy.numel(), bytes({&a.dy, &a.gate, &a.up, &a.dgate, &a.dup, &a.y})};
}
void swiglu_backward(const SwigluGradArgs& args, Stream& stream) {
  for (const Tensor* t : {&args.dgate, &args.dup, &args.y, &args.gate, &args.up}) {
    check_same(*t, args.dy);
  }
  check_contiguous({&args.dgate, &args.dup, &args.y, &args.dy, &args.gate, &args.up});
  WEFT_DISPATCH(swiglu_backward, args, stream);
}

Cost cost(const EmbeddingArgs& a) {
  return {0.0, 2 * bytes({&a.y}) + bytes({&a.tokens})};
}
void embedding_forward(const EmbeddingArgs& args, Stream& stream) {
  WEFT_CHECK(args.y.ndim == 2 && args.table.ndim == 2 && args.y.dim(1) == args.table.dim(1),
             args.y.text(), args.table.text());
  WEFT_CHECK(args.tokens.has_shape({args.y.dim(0)}), args.tokens.text());
  WEFT_CHECK(args.vocab_begin >= 0 && args.vocab_begin + args.table.dim(0) <= args.vocab,
             args.table.text(), " from ", args.vocab_begin, " of ", args.vocab);
  WEFT_DISPATCH(embedding_forward, args, stream);
}

Cost cost(const EmbeddingGradArgs& a) {
  return {1.0 * a.dy.numel(), 3 * bytes({&a.dy}) + bytes({&a.tokens})};
}
void embedding_backward(const EmbeddingGradArgs& args, Stream& stream) {
  WEFT_CHECK(args.dy.ndim == 2 && args.dtable.ndim == 2 && args.dy.dim(1) == args.dtable.dim(1),
             args.dy.text(), args.dtable.text());
  check_gradient(args.dtable, args.dy.dtype);
  WEFT_CHECK(args.tokens.has_shape({args.dy.dim(0)}), args.tokens.text());
  WEFT_DISPATCH(embedding_backward, args, stream);
}

Cost cost(const AddArgs& a) {
  return {1.0 * a.y.numel(), bytes({&a.a, &a.b, &a.y})};
}
void add(const AddArgs& args, Stream& stream) {
  check_same(args.y, args.a);
  check_same(args.y, args.b);
  check_contiguous({&args.y, &args.a, &args.b});
  WEFT_DISPATCH(add, args, stream);
}

Cost cost(const FillArgs& a) {
  return {0.0, bytes({&a.y})};
}
void fill(const FillArgs& args, Stream& stream) {
  check_contiguous({&args.y});
  WEFT_DISPATCH(fill, args, stream);
}

Cost cost(const CopyArgs& a) {
  return {0.0, bytes({&a.x, &a.y})};
}
void copy(const CopyArgs& args, Stream& stream) {
  check_same(args.y, args.x);
  WEFT_DISPATCH(copy, args, stream);
}

Cost cost(const ConvertArgs& a) {
  return {0.0, bytes({&a.x, &a.y})};
}
void convert(const ConvertArgs& args, Stream& stream) {
  WEFT_CHECK(same_shape(args.y, args.x), args.y.text(), " and ", args.x.text());
  check_contiguous({&args.y, &args.x});
  WEFT_DISPATCH(convert, args, stream);
}

}  // namespace weft
