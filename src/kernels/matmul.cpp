#include "src/kernels/matmul.hpp"

#include <algorithm>
#include <cstdint>

#include "src/kernels/dispatch.hpp"

namespace weft {
namespace {

int64_t inner(const MatmulArgs& args) {
  return args.a.dim(args.transpose_a ? 0 : 1);
}

void check(const MatmulArgs& args) {
  const auto& [c, a, b, transpose_a, transpose_b, accumulate, alpha] = args;
  WEFT_CHECK(c.ndim == 2 && a.ndim == 2 && b.ndim == 2);
  WEFT_CHECK(a.dtype == b.dtype && (c.dtype == a.dtype || c.dtype == accumulator_of(a.dtype)),
             c.text(), a.text(), b.text());
  for (const Tensor* t : {&c, &a, &b}) {  // BLAS counts in 32 bits
    WEFT_CHECK(std::max({t->dim(0), t->dim(1), t->stride[0]}) <= INT32_MAX, t->text());
  }
  WEFT_CHECK(a.dim(transpose_a ? 1 : 0) == c.dim(0) && b.dim(transpose_b ? 0 : 1) == c.dim(1) &&
                 b.dim(transpose_b ? 1 : 0) == inner(args),
             c.text(), " = ", a.text(), transpose_a ? "^T" : "", " ", b.text(),
             transpose_b ? "^T" : "");
}

}  // namespace

Cost cost(const MatmulArgs& args) {
  const double passes_of_c = args.accumulate ? 2 : 1;
  return {2.0 * args.c.dim(0) * args.c.dim(1) * inner(args),
          static_cast<double>(args.a.nbytes() + args.b.nbytes() + passes_of_c * args.c.nbytes())};
}

std::vector<Product> products(const MatmulArgs& args) {
  return {{.m = args.c.dim(0),
           .n = args.c.dim(1),
           .k = inner(args),
           .transpose_a = args.transpose_a,
           .transpose_b = args.transpose_b,
           .accumulate = args.accumulate,
           .flops = cost(args).flops}};
}

void matmul(const MatmulArgs& args, Stream& stream) {
  check(args);
  WEFT_DISPATCH(matmul, args, stream);
}

}  // namespace weft
