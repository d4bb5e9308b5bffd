// Parameters: their description, and the flat buffers that hold values and gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/tensor/arena.hpp"

namespace weft {

/// The only source for initial values, gradient sums, the norm, sharding and files. Made by the
/// model; the store fills in where it lives.
struct Parameter {
  enum class Init { normal, zeros, ones, drawn };

  std::string name;            // as Hugging Face writes it
  std::vector<int64_t> shape;  // global
  Init init = Init::normal;
  double init_std = 0;                       // of Init::normal
  double (*draw)(double uniform) = nullptr;  // of Init::drawn: a value from one in [0, 1)

  int64_t offset = -1;  // of the first element in the flat buffers; set by ParameterStore

  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    return n;
  }
  /// Weight decay: on matrices, not on vectors.
  bool decays() const { return shape.size() >= 2; }
};

/// Values and gradients of all parameters of one rank, each one flat buffer: a parameter is a view,
/// a piece of the sharded optimizer is a range. Parameters start at multiples of 16 elements.
/// Gradients have the accumulator type of the values'.
class ParameterStore {
 public:
  /// `parameters` must outlive the store and stay in place; their offsets are set here. Both
  /// buffers come from `arena`.
  ParameterStore(std::vector<Parameter*> parameters, DType dtype, Arena& arena);

  const std::vector<Parameter*>& parameters() const { return parameters_; }
  DType dtype() const { return values_.dtype; }
  /// Elements of a flat buffer, padding included; padding is zero in both buffers, always.
  int64_t size() const { return values_.numel(); }
  /// Elements of all parameters.
  int64_t count() const { return count_; }

  Tensor values() const { return values_; }
  Tensor gradients() const { return gradients_; }
  Tensor value(const Parameter& parameter) const { return view(values_, parameter); }
  Tensor gradient(const Parameter& parameter) const { return view(gradients_, parameter); }

 private:
  static Tensor view(const Tensor& flat, const Parameter& parameter);

  std::vector<Parameter*> parameters_;
  int64_t count_ = 0;
  Tensor values_, gradients_;  // [size]
};

}  // namespace weft
