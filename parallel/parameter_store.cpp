#include "parallel/parameter_store.hpp"

namespace weft {

ParameterStore::ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena)
    : parameters_(std::move(parameters)) {
  constexpr int64_t kStart = 16;
  int64_t size = 0;
  for (Parameter* parameter : parameters_) {
    parameter->offset = size;
    size += (parameter->numel() + kStart - 1) / kStart * kStart;
    count_ += parameter->numel();
  }
  values_ = arena.allocate_zeros("parameters", dtype, {size});
  gradients_ = arena.allocate_zeros("gradients", accumulator_of(dtype), {size});
}

Tensor ParameterStore::view(const Tensor& flat, const Parameter& parameter) {
  WEFT_CHECK(parameter.offset >= 0, parameter.name, " is not in this store");
  const Tensor range = flat.slice(0, parameter.offset, parameter.offset + parameter.numel());
  return Tensor::view(range.data, range.dtype, range.device, parameter.shape);
}

}  // namespace weft
