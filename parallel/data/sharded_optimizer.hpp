// AdamW or Muon, sharded over the holders of each parameter (ZeRO; Rajbhandari et al., arXiv
// 1910.02054): a rank updates one piece of every bucket and has moments for that piece only.
#pragma once

#include <optional>

#include "parallel/data/muon.hpp"

namespace weft {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices only
  double grad_clip = 1.0;     // of the global norm; 0: none
};

/// Of hidden matrices, whose step is lr 0.2 sqrt(max(out, in)) times the orthogonalised update, so
/// that learning rate and weight decay are AdamW's (Liu et al., arXiv 2502.16982). All else takes
/// AdamW.
struct MuonConfig {
  double momentum = 0.95;  // Nesterov's
};

/// What a rank updates of one parameter: elements [begin, end) of the rank's piece of it.
struct OwnedPiece {
  const Parameter* parameter;
  int64_t begin, end;
  Tensor value, gradient;  // [end - begin]
  /// The same in f32, of which `value` is the rounding; absent where values are not rounded.
  Tensor master;
};

class ShardedOptimizer {
 public:
  /// Moments, and in bf16 the f32 masters, come from `arena`. The traffic must outlive the
  /// optimizer. `muon`, where it is given, orthogonalises.
  ShardedOptimizer(const AdamWConfig& config, ParameterTraffic& traffic, Arena& arena,
                   const MuonConfig& muon_config = {}, std::optional<Muon> muon = {});

  /// Waits until gradients are summed over their holders, and takes their global norm (all-reduce
  /// over all ranks). squared_norm: [1] f64, of the step before (0 before the first), overwritten
  /// with the same bits on every rank. It is not finite where the gradient or the loss of any rank
  /// is not, nor from then on, and where it is not update() changes nothing: neither that step nor
  /// those enqueued behind it move the parameters.
  void reduce(const Tensor& squared_norm, StepContext& ctx);
  /// One update after reduce(), `step` counting from 1: own pieces, which the traffic then brings
  /// to the other holders where those have whole values.
  void update(double learning_rate, int64_t step, const Tensor& squared_norm, StepContext& ctx);

  /// Where values are rounded to bf16, the f32 masters of what the rank updates; none otherwise.
  /// Whoever sets values sets them: updates start from the masters, and round them to values.
  std::vector<HeldValues> masters() const;
  /// Every element of the model is owned by one rank. Gradients are those after reduce(), until
  /// update().
  std::vector<OwnedPiece> owned() const;

 private:
  bool orthogonalises(const Parameter& parameter) const {
    return muon_.has_value() && parameter.is_hidden_matrix();
  }
  /// Puts momentum, and then its orthogonalised update, in the place of gradients.
  void prepare_matrices(const Tensor& squared_norm, StepContext& ctx);

  AdamWConfig config_;
  MuonConfig muon_config_;
  ParameterTraffic& traffic_;
  std::optional<Muon> muon_;
  Tensor m_;        // [traffic.size()], of the gradients' type
  Tensor v_;        // the same of what takes AdamW, one after the other
  Tensor masters_;  // as m_: where the values are rounded to bf16, the own pieces that are not
};

}  // namespace weft
