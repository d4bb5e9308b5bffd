#include "parallel/parameter_store.hpp"

#include <map>
#include <utility>

namespace weft {

ParameterStore::ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena)
    : parameters_(std::move(parameters)) {
  std::map<std::pair<int, Holders>, std::vector<Parameter*>> members;
  for (Parameter* parameter : parameters_) {
    members[{parameter->unit, parameter->holders}].push_back(parameter);
  }
  constexpr int64_t kStart = 16;
  int64_t size = 0;
  for (const auto& [key, of_bucket] : members) {
    ParameterBucket bucket{.unit = key.first, .holders = key.second, .parameters = of_bucket};
    bucket.begin = size;
    for (Parameter* parameter : of_bucket) {
      parameter->offset = size;
      size += (parameter->numel() + kStart - 1) / kStart * kStart;
      count_ += parameter->numel();
    }
    bucket.end = size;
    buckets_.push_back(std::move(bucket));
  }
  values_ = arena.allocate_zeros("parameters", dtype, {size});
  gradients_ = arena.allocate_zeros("gradients", accumulator_of(dtype), {size});
}

Tensor ParameterStore::view(const Tensor& flat, const Parameter& parameter) {
  WEFT_CHECK(parameter.offset >= 0, parameter.name, " is not in this store");
  const Tensor range = flat.slice(0, parameter.offset, parameter.offset + parameter.numel());
  return Tensor::view(range.data, range.dtype, range.device, parameter.local_shape());
}

}  // namespace weft
