// AdamW sharded over the holders of each parameter (ZeRO stage 1; Rajbhandari et al., arXiv
// 1910.02054): a rank updates one piece of every bucket of the store and has moments for that piece
// only.
#pragma once

#include "parallel/layer.hpp"

namespace weft {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices only
  double grad_clip = 1.0;     // of the global norm; 0: none
};

/// What a rank updates of one parameter: elements [begin, end) of the rank's piece of it.
struct OwnedPiece {
  const Parameter* parameter;
  int64_t begin, end;
  Tensor value, gradient;  // [end - begin]
};

class ShardedOptimizer {
 public:
  /// Moments, and in bf16 the f32 masters, come from `arena`. The store must outlive the optimizer,
  /// and so must the mesh, which has the groups of the store's holders.
  ShardedOptimizer(const AdamWConfig& config, const ParameterStore& store, ProcessMesh& mesh,
                   Arena& arena);

  /// Gradients are summed over their holders (reduce-scatter), and their global norm is taken
  /// (all-reduce over all ranks). Gradients are the sums in the own pieces afterwards, undefined in
  /// the others. squared_norm: [1] f64, overwritten with the same bits on every rank.
  void reduce(const Tensor& squared_norm, StepContext& ctx);
  /// One update after reduce(), `step` counting from 1: own pieces, which are then gathered.
  void update(double learning_rate, int64_t step, const Tensor& squared_norm, StepContext& ctx);

  /// Every element of the model is owned by one rank. Gradients are those after reduce().
  std::vector<OwnedPiece> owned() const;

 private:
  /// The own piece of a bucket.
  struct Shard {
    const ParameterBucket* bucket;
    Communicator* group;
    Cuts cuts;           // of the bucket over the group
    int64_t begin, end;  // in the store's flat buffers
    int64_t at;          // in the optimizer's own
    int64_t size() const { return end - begin; }
    Tensor of(const Tensor& flat) const { return flat.slice(0, bucket->begin, bucket->end); }
  };

  AdamWConfig config_;
  const ParameterStore& store_;
  std::vector<Shard> shards_;
  int64_t size_ = 0;  // of all own pieces
  Tensor m_, v_;      // [size], of the gradients' type
  /// [size]: where the values are rounded to bf16, the own pieces of them that are not. Taken from
  /// the values at the first step.
  Tensor masters_;
  bool has_masters_ = false;
};

}  // namespace weft
