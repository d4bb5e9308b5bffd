#include "parallel/parameter.hpp"

#include <functional>
#include <numeric>
#include <span>

namespace weft {
namespace {

int64_t product(std::span<const int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
}

}  // namespace

std::vector<int64_t> Parameter::local_shape() const {
  std::vector<int64_t> dims = shape;
  if (cut_dim >= 0) dims[cut_dim] = end - begin;
  return dims;
}

int64_t Parameter::numel() const {
  return product(local_shape());
}

int64_t Parameter::global_numel() const {
  return product(shape);
}

int64_t Parameter::global_index(int64_t i) const {
  if (cut_dim < 0) return i;
  const int64_t inner = product(std::span(shape).subspan(cut_dim + 1));
  const int64_t row = (end - begin) * inner;  // of the piece, along the dims before the cut
  return i / row * shape[cut_dim] * inner + begin * inner + i % row;
}

}  // namespace weft
