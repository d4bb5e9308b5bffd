#include "parallel/parameter_store.hpp"

#include <map>
#include <tuple>
#include <utility>

namespace weft {

std::vector<ParameterBucket> make_buckets(const std::vector<Parameter*>& parameters, int zero) {
  using Key = std::tuple<int, Holders, int>;
  std::map<Key, std::vector<Parameter*>> members;
  for (Parameter* p : parameters) members[{p->unit, p->holders, p->second_unit}].push_back(p);
  constexpr int64_t kStart = 16;
  std::vector<ParameterBucket> buckets;
  for (const auto& [key, of_bucket] : members) {
    const auto& [unit, holders, second_unit] = key;
    ParameterBucket bucket{.unit = unit,
                           .second_unit = second_unit,
                           .holders = holders,
                           .parameters = of_bucket,
                           .whole_values = zero < 3 || holders.both_ends,
                           .whole_gradients = zero < 2 || holders.both_ends};
    for (Parameter* p : of_bucket) {
      p->bucket = static_cast<int>(buckets.size());
      p->offset = bucket.size;
      bucket.size += (p->numel() + kStart - 1) / kStart * kStart;
    }
    buckets.push_back(std::move(bucket));
  }
  return buckets;
}

ParameterStore::ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena,
                               int zero)
    : parameters_(std::move(parameters)),
      buckets_(make_buckets(parameters_, zero)),
      dtype_(dtype),
      places_(buckets_.size()) {
  for (const Parameter* p : parameters_) count_ += p->numel();
  const auto lay_out = [&](const char* name, DType type, bool ParameterBucket::*whole,
                           Tensor Place::*tensor) {
    int64_t size = 0;
    for (const ParameterBucket& bucket : buckets_) size += bucket.*whole ? bucket.size : 0;
    const Tensor all = arena.allocate_zeros(name, type, {size});
    int64_t at = 0;
    for (size_t b = 0; b < buckets_.size(); ++b) {
      if (!(buckets_[b].*whole)) continue;
      places_[b].*tensor = all.slice(0, at, at + buckets_[b].size);
      at += buckets_[b].size;
    }
    return all;
  };
  values_ = lay_out("parameters", dtype, &ParameterBucket::whole_values, &Place::values);
  gradients_ = lay_out("gradients", accumulator_of(dtype), &ParameterBucket::whole_gradients,
                       &Place::gradients);
}

Tensor ParameterStore::value(const Parameter& parameter) const {
  return view(place(parameter).values, parameter, "values");
}

Tensor ParameterStore::gradient(const Parameter& parameter) const {
  return view(place(parameter).gradients, parameter, "gradient");
}

const ParameterStore::Place& ParameterStore::place(const Parameter& parameter) const {
  WEFT_CHECK(parameter.bucket >= 0, parameter.name, " is in no store");
  return places_.at(parameter.bucket);
}

Tensor ParameterStore::view(const Tensor& bucket, const Parameter& parameter, const char* what) {
  WEFT_CHECK(bucket, "unit ", parameter.unit, " is not open: ", parameter.name, " has no ", what,
             " here");
  const Tensor range = bucket.slice(0, parameter.offset, parameter.offset + parameter.numel());
  return Tensor::view(range.data, range.dtype, range.device, parameter.local_shape());
}

}  // namespace weft
