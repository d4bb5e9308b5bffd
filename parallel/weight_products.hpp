// Products of weights' gradients that wait for their turn.
#pragma once

#include <vector>

#include "src/kernels/matmul.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// A queue of products c += op(a) op(b) with copies of their operands, which the layers go on to
/// overwrite. c stays where it is.
class WeightProducts {
 public:
  /// `slab` is the queue's own.
  explicit WeightProducts(Arena& slab) : slab_(slab) {}

  /// Copies the operands, in the order of `compute`.
  void add(const MatmulArgs& product, Stream& compute);
  /// Runs the products in the order they came in, so that sums add up as they would have then;
  /// leaves the queue and its slab empty.
  void run(Stream& compute);

 private:
  Arena& slab_;
  std::vector<MatmulArgs> products_;
};

}  // namespace weft
