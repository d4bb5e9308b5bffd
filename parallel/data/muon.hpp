// Muon's part of an update (Jordan et al., "Muon: An optimizer for hidden layers in neural
// networks", 2024): matrices whose momentum lies in pieces on several ranks are brought to one rank
// each, orthogonalised there, and brought back.
#pragma once

#include <vector>

#include "parallel/layer.hpp"

namespace weft {

/// What Newton-Schulz iteration makes of a matrix: nearly U V^T, where x is U S V^T. Five steps of
/// x <- a x + b (x x^T) x + c (x x^T)^2 x with (a, b, c) = (3.4445, -4.7750, 2.0315) on x / |x|,
/// which take singular values into 0.7 to 1.2 but for the smallest. x and spare: [out, in],
/// contiguous, of an accumulator type, both overwritten; returns the one that has the result.
Tensor newton_schulz(Tensor x, Tensor spare, Arena& scratch, Stream& compute);

/// What the ranks at one place of the tensor axis have of a parameter: indices [begin, end) of its
/// cut dim, at `offset` of a bucket of that size.
struct ParameterBlock {
  int64_t begin, end;
  int64_t numel;
  int64_t bucket_size, offset;
};
/// [place on the tensor axis][parameter, in the order of the store].
using ParameterBlocks = std::vector<std::vector<ParameterBlock>>;
/// Of one place. Sets the parameters' buckets and offsets as a store does.
std::vector<ParameterBlock> blocks_of(const std::vector<Parameter*>& parameters);

class Muon {
 public:
  /// Which of the parameters are orthogonalised: is_hidden_matrix(). The mesh has the group of a
  /// stage, of the holders {.tensor = all of the tensor axis}. Owners are chosen so that all ranks
  /// of it have about the same work. Traffic and mesh must outlive it.
  Muon(const ParameterTraffic& traffic, ProcessMesh& mesh, const ParameterBlocks& blocks);

  /// Of every hidden matrix the own piece of the shards' gradients: from the update that is wanted
  /// to the orthogonalised one. One matrix a rank is whole at a time.
  void orthogonalise(StepContext& ctx) const;

 private:
  /// Elements that a member of the group has, in the buffer that has a matrix block after block.
  struct Part {
    int member;
    int64_t begin, end;
  };
  struct Matrix {
    const Parameter* parameter;
    const ParameterShard* shard;         // of this rank
    std::vector<ParameterBlock> blocks;  // each once, in order
    std::vector<Part> parts;
    int owner = 0;
    int turn = 0;  // among the matrices of the owner
  };

  std::vector<Part> parts_of(const Parameter& parameter, size_t index, const ProcessMesh& mesh,
                             const ParameterBlocks& blocks) const;
  void choose_owners();
  Tensor own_piece(const Matrix& matrix, const Part& part) const;
  /// Orthogonalises the matrix whose blocks lie in `blocks`; returns the tensor that has the
  /// result's.
  Tensor orthogonalised(const Matrix& matrix, const Tensor& blocks, const Tensor& spare,
                        StepContext& ctx) const;
  void one_turn(int turn, StepContext& ctx) const;

  const ParameterTraffic& traffic_;
  Communicator& group_;
  std::vector<Matrix> matrices_;
  int turns_ = 0;
};

}  // namespace weft
