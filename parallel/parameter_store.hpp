// The flat buffers that hold the values and the gradients of a rank's parameters.
#pragma once

#include <vector>

#include "parallel/parameter.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// Parameters of one unit of the model (the embedding, a layer, the head) that the same ranks hold:
/// a range of the flat buffers, whose gradients are summed and whose values are gathered as one.
struct ParameterBucket {
  int unit;
  Holders holders;
  std::vector<Parameter*> parameters;
  int64_t begin = 0, end = 0;  // of the flat buffers

  int64_t size() const { return end - begin; }
};

/// Values and gradients of all parameters of one rank, each one flat buffer: a parameter is a view,
/// a piece of the sharded optimizer is a range. Parameters start at multiples of 16 elements.
/// Gradients have the accumulator type of the values'.
class ParameterStore {
 public:
  /// `parameters` must outlive the store and stay in place; their offsets are set here. Both
  /// buffers come from `arena`.
  ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena);

  /// In the model's order.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  /// By unit, then by holders; together they are the flat buffers.
  const std::vector<ParameterBucket>& buckets() const { return buckets_; }
  DType dtype() const { return values_.dtype; }
  /// Elements of a flat buffer, padding included; padding is zero in both buffers, always.
  int64_t size() const { return values_.numel(); }
  /// Elements of all parameters that the rank holds.
  int64_t count() const { return count_; }

  Tensor values() const { return values_; }
  Tensor gradients() const { return gradients_; }
  Tensor value(const Parameter& parameter) const { return view(values_, parameter); }
  Tensor gradient(const Parameter& parameter) const { return view(gradients_, parameter); }

 private:
  static Tensor view(const Tensor& flat, const Parameter& parameter);

  std::vector<Parameter*> parameters_;
  std::vector<ParameterBucket> buckets_;
  int64_t count_ = 0;
  Tensor values_, gradients_;  // [size]
};

}  // namespace weft
