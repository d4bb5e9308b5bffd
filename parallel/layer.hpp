// What layers are made of: Frame (what forward leaves for backward), StepContext (what a step
// lends), Layer.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "parallel/mesh.hpp"
#include "parallel/parameter_store.hpp"
#include "src/core/device.hpp"
#include "src/core/segment_map.hpp"
#include "src/core/shard.hpp"
#include "src/kernels/matmul.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// One micro-batch on one stage: its tokens, its documents, and a stack of named slots that layers
/// push going forward and pop going backward, in reverse order.
class Frame {
 public:
  /// `slab` is the frame's own. `cuts` shards the N tokens of each of `batch` sequences; this rank
  /// holds piece `shard`.
  Frame(Arena& slab, int64_t batch, const Cuts& cuts, int shard, int micro_batch);

  int64_t batch() const { return batch_; }                     // B
  int64_t tokens() const { return cuts_.size(shard_); }        // T, of this shard
  int64_t rows() const { return batch_ * tokens(); }           // B T
  int64_t first_token() const { return cuts_.begin(shard_); }  // global index of token 0
  const Cuts& cuts() const { return cuts_; }
  int micro_batch() const { return micro_batch_; }

  /// A named tensor that lives until it is popped.
  Tensor push(const char* slot, DType dtype, std::initializer_list<int64_t> shape);
  /// The tensor pushed last, which must bear this name. Its bytes stay until the next push.
  Tensor pop(const char* slot);
  /// A slot of this frame that stays; the latest of that name.
  Tensor peek(const char* slot) const;
  /// The same, or an absent tensor where there is none.
  Tensor find(const char* slot) const;
  bool empty() const { return slots_.empty(); }

 private:
  struct Slot {
    const char* name;
    Tensor tensor;
    Arena::Mark below;
  };

  Arena& slab_;
  int64_t batch_;
  Cuts cuts_;
  int shard_;
  int micro_batch_;
  std::vector<Slot> slots_;
};

/// Sees named tensors as a step passes them; for tests, parity and evaluation.
using Probe = std::function<void(std::string_view name, const Tensor& value)>;

/// What a step lends to the layers. Carries no documents: those belong to the frame.
struct StepContext {
  ProcessMesh& mesh;
  Stream& compute;
  Arena& scratch;
  const ParameterStore& parameters;
  DType dtype;            // of computation
  Tensor loss_sum;        // [1] f64: sum of token losses of this rank, accumulates
  double loss_scale = 1;  // of the gradient: 1 / labelled tokens of the global batch
  bool training = true;   // false: only the loss, no gradient
  Probe probe = {};       // may be empty

  Tensor weight(const Parameter& p) const { return parameters.value(p); }
  Tensor gradient(const Parameter& p) const { return parameters.gradient(p); }
  /// A product that adds to a parameter's gradient. All go through here, so that a schedule can
  /// hold them back.
  void weight_gradient(const MatmulArgs& args) { matmul(args, compute); }
  void observe(std::string_view name, const Tensor& value) const {
    if (probe) probe(name, value);
  }
};

/// One branch off the residual stream, a token mixer or an MLP, with explicit backward. Gradients
/// of parameters are added, never overwritten.
class Layer {
 public:
  virtual ~Layer() = default;
  /// x, y: [R, C], R = B T rows; y is overwritten. Pushes onto the frame what backward needs. x
  /// stays where it is until backward.
  virtual void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) = 0;
  /// dx: overwritten with the gradient of x; may not be dy. Pops what forward pushed.
  virtual void backward(const Tensor& dx, const Tensor& dy, const Tensor& x, Frame& frame,
                        StepContext& ctx) = 0;
  virtual void visit(const std::function<void(Parameter&)>& f) = 0;
};

}  // namespace weft
