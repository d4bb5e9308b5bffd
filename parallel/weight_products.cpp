#include "parallel/weight_products.hpp"

#include "src/kernels/pointwise.hpp"

namespace weft {

void WeightProducts::add(const MatmulArgs& product, Stream& compute) {
  const auto kept = [&](const Tensor& operand) {
    const Tensor copied =
        slab_.allocate("waiting operand", operand.dtype, {operand.dim(0), operand.dim(1)});
    copy({.y = copied, .x = operand}, compute);
    return copied;
  };
  MatmulArgs waiting = product;
  waiting.a = kept(product.a);
  waiting.b = kept(product.b);
  products_.push_back(waiting);
}

void WeightProducts::run(Stream& compute) {
  for (const MatmulArgs& product : products_) matmul(product, compute);
  products_.clear();
  slab_.rewind({});
}

}  // namespace weft
