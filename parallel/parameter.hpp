// A parameter of the model, and the piece of it that a rank holds.
#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <vector>

namespace weft {

/// Which ranks hold the same elements of a parameter: those of data x sequence that differ in
/// nothing else, and where it says so more of the mesh. A gradient is the sum of what its holders
/// computed.
struct Holders {
  int tensor = 1;          // so many consecutive ranks of the tensor axis
  bool both_ends = false;  // the first and the last stage of the pipeline
  auto operator<=>(const Holders&) const = default;
};

/// The only source for initial values, gradient sums, the norm, sharding and files. Made by the
/// model; the store fills in where it lives.
struct Parameter {
  enum class Init { normal, zeros, ones, drawn };

  std::string name;            // as Hugging Face writes it
  std::vector<int64_t> shape;  // global
  Init init = Init::normal;
  double init_std = 0;                       // of Init::normal
  double (*draw)(double uniform) = nullptr;  // of Init::drawn: a value from one in [0, 1)

  /// The rank's piece: indices [begin, end) of dim `cut_dim`, 0 or 1; all of it where that is -1.
  int cut_dim = -1;
  int64_t begin = 0, end = 0;
  Holders holders{};

  bool hidden = true;         // neither the embedding's table nor the head's matrix
  int unit = 0;               // of the model, in the order of a forward; set by the model
  int second_unit = -1;       // another that uses it too: the head, where its table is tied
  bool read_backward = true;  // by the backward of its unit; not an embedding's table
  int bucket = -1;            // of the store, and
  int64_t offset = -1;        // of the first element in it; both set by ParameterStore

  /// Of the rank's piece.
  std::vector<int64_t> local_shape() const;
  int64_t numel() const;
  int64_t global_numel() const;
  /// Where element i of the piece, in row-major order, is in the whole.
  int64_t global_index(int64_t i) const;
  /// Weight decay: on matrices, not on vectors.
  bool decays() const { return shape.size() >= 2; }
  /// Of Muon: its updates are orthogonalised.
  bool is_hidden_matrix() const { return hidden && shape.size() == 2; }
};

}  // namespace weft
