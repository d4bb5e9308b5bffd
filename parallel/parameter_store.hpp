// Where the values and the gradients of a rank's parameters are.
#pragma once

#include <vector>

#include "parallel/parameter.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// Parameters of one unit of the model (the embedding, a layer, the head) that the same ranks hold:
/// what is summed, updated and gathered as one.
struct ParameterBucket {
  int unit, second_unit;  // of all of them
  Holders holders;
  std::vector<Parameter*> parameters;
  int64_t size = 0;  // elements, padding included
  /// Here as a whole for all of a run. Otherwise the rank keeps a piece, and has the whole while a
  /// unit that uses it is computed.
  bool whole_values = true, whole_gradients = true;

  bool used_by(int some_unit) const { return some_unit == unit || some_unit == second_unit; }
};

/// Those of a rank's parameters, by unit, then by holders. Sets buckets and offsets. `zero` is the
/// stage of ZeRO (Rajbhandari et al., arXiv 1910.02054): from 2 on gradients are in pieces, from 3
/// on values too. What both ends of a pipeline hold stays whole: they do not come to it at the same
/// time.
std::vector<ParameterBucket> make_buckets(const std::vector<Parameter*>& parameters, int zero);

/// Values and gradients of all parameters of one rank. A bucket is a flat buffer each, a parameter
/// a view of it, which starts at a multiple of 16 elements. Gradients have the accumulator type of
/// the values'. Padding is zero in both, always.
class ParameterStore {
 public:
  /// `parameters` must outlive the store and stay in place; make_buckets() sees them. Whole buffers
  /// come from `arena`.
  ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena, int zero = 1);

  /// In the model's order.
  const std::vector<Parameter*>& parameters() const { return parameters_; }
  /// By unit, then by holders.
  const std::vector<ParameterBucket>& buckets() const { return buckets_; }
  DType dtype() const { return dtype_; }
  /// Elements of all parameters that the rank holds, in pieces or not.
  int64_t count() const { return count_; }

  /// All that is here for all of a run: buckets one after the other.
  Tensor values() const { return values_; }
  Tensor gradients() const { return gradients_; }

  /// Flat, of the whole bucket; absent while it is not here.
  Tensor values_of(int bucket) const { return places_[bucket].values; }
  Tensor gradients_of(int bucket) const { return places_[bucket].gradients; }
  /// Says where the whole bucket is from now on; nowhere, where the tensor is absent.
  void place_values(int bucket, const Tensor& whole) { places_[bucket].values = whole; }
  void place_gradients(int bucket, const Tensor& whole) { places_[bucket].gradients = whole; }

  /// Of the rank's piece of the parameter. Throws where its bucket is not here: the unit that uses
  /// it is not being computed, or its gradient is already on its way to be summed.
  Tensor value(const Parameter& parameter) const;
  Tensor gradient(const Parameter& parameter) const;

 private:
  struct Place {
    Tensor values, gradients;
  };
  const Place& place(const Parameter& parameter) const;
  static Tensor view(const Tensor& bucket, const Parameter& parameter, const char* what);

  std::vector<Parameter*> parameters_;
  std::vector<ParameterBucket> buckets_;
  DType dtype_;
  int64_t count_ = 0;
  Tensor values_, gradients_;
  std::vector<Place> places_;  // by bucket
};

}  // namespace weft
