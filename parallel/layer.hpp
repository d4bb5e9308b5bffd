// What layers are made of: Frame (what forward leaves for backward), StepContext (what a step
// lends), Layer.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "parallel/data/parameter_traffic.hpp"
#include "parallel/mesh.hpp"
#include "parallel/parameter_store.hpp"
#include "parallel/weight_products.hpp"
#include "src/core/device.hpp"
#include "src/core/segment_map.hpp"
#include "src/core/shard.hpp"
#include "src/kernels/matmul.hpp"
#include "src/tensor/arena.hpp"

namespace weft {

/// How much of a layer backward computes again (train.recompute), from least to most.
enum class Recompute {
  none,
  attention_output,  // all but the mixer's result (Li, Shao et al., arXiv 2310.03294)
  layer              // all but what enters the layer
};

/// One micro-batch on one stage: its tokens, its documents, and a stack of named slots that layers
/// push going forward and pop going backward, in reverse order.
///
/// What the policy `recompute` drops does not outlive the layer's forward. Backward then runs that
/// forward again over the slots that were kept: push() finds them in place, and what is present is
/// neither computed nor communicated again.
class Frame {
 public:
  /// `slab` is the frame's own. `cuts` shards the N tokens of each of `batch` sequences; this rank
  /// holds piece `shard`.
  Frame(Arena& slab, int64_t batch, const Cuts& cuts, int shard, int micro_batch,
        Recompute recompute = Recompute::none);

  int64_t batch() const { return batch_; }                     // B
  int64_t tokens() const { return cuts_.size(shard_); }        // T, of this shard
  int64_t rows() const { return batch_ * tokens(); }           // B T
  int64_t first_token() const { return cuts_.begin(shard_); }  // global index of token 0
  const Cuts& cuts() const { return cuts_; }
  int micro_batch() const { return micro_batch_; }
  /// Whether the host knows that each sequence is one document, once its documents are there.
  bool one_document() const { return one_document_; }
  void set_one_document(bool one) { one_document_ = one; }

  /// A named tensor that lives until it is popped. Inside a layer that holds under policies up to
  /// `kept_under`; under others it lies in the layer's scratch and lives until the layer closes, so
  /// that no Scope of the scratch may be open around the push.
  Tensor push(const char* slot, DType dtype, std::initializer_list<int64_t> shape,
              Recompute kept_under = Recompute::none);
  /// The tensor pushed last, which must bear this name. Its bytes stay until the next push.
  Tensor pop(const char* slot);
  /// A slot of this frame that stays; the latest of that name.
  Tensor peek(const char* slot) const;
  /// The same, or an absent tensor where there is none.
  Tensor find(const char* slot) const;
  /// Whether the latest slot of that name still holds what an earlier forward wrote.
  bool present(const char* slot) const;
  bool empty() const { return slots_.empty(); }
  /// Gives back the scratch of the open layer's dropped slots that have been popped. No Scope of
  /// the scratch may be open inside the layer.
  void release_popped();

  /// Begins a layer's forward; `scratch` takes what the policy drops.
  void open_layer(Arena& scratch);
  /// Begins the same layer's backward, layers in reverse order. True where its forward must run
  /// again, which then pushes the same slots in the same order.
  bool reopen_layer(Arena& scratch);
  /// Ends either: dropped slots are gone, and the scratch is as it was before.
  void close_layer();

 private:
  struct Slot {
    const char* name;
    Tensor tensor;
    Arena::Mark below;     // of the slab, where it is kept
    Arena::Mark above;     // of the scratch, where it is dropped
    int layer;             // counted as they open; 0: of none
    bool kept;             // lies in the slab
    bool present = false;  // found in place when it was pushed
  };

  void open(int layer, Arena& scratch);
  /// Of the scratch, above the open layer's dropped slots.
  Arena::Mark dropped_end() const;
  /// The next of the slots that the layer kept, which must bear this name.
  Slot take_held(const char* slot);
  const Slot* latest(const char* slot) const;  // or null
  /// Throws where the scratch was rewound below the layer's slots.
  void check_scratch() const;

  Arena& slab_;
  int64_t batch_;
  Cuts cuts_;
  int shard_;
  int micro_batch_;
  Recompute recompute_;
  bool one_document_ = false;
  std::vector<Slot> slots_;

  int layers_ = 0;            // opened so far
  int open_ = 0;              // the open layer, or 0
  bool again_ = false;        // its forward runs again
  std::vector<Slot> held_;    // what it kept and that forward has not pushed yet, the next one last
  Arena* scratch_ = nullptr;  // while a layer is open
  Arena::Mark before_{};      // of the scratch, when the layer opened
};

/// A named tensor as a step passes it: some rows of one micro-batch, [rows, width] or [B, T, ...],
/// and of each row some columns. What several ranks see of one place adds up to the whole.
struct Observation {
  std::string name;
  int micro_batch;
  const Tensor& value;
  int64_t row;      // of the micro-batch's B T rows, the first that is here
  int64_t column;   // of a whole row, the first that is here
  int64_t columns;  // of a whole row
};

/// Where an observed value lies in the whole of a micro-batch; columns 0: all of them are here.
struct RowPlace {
  int64_t row = 0, column = 0, columns = 0;
};

/// Sees each value once: not again where backward computes it again. For tests, parity and
/// evaluation.
using Probe = std::function<void(const Observation&)>;

/// What a step lends to the layers. Carries no documents: those belong to the frame.
struct StepContext {
  ProcessMesh& mesh;
  Stream& compute;
  Arena& scratch;
  const ParameterStore& parameters;
  DType dtype;                        // of computation
  Tensor loss_sum;                    // [1] f64: sum of token losses of this rank, accumulates
  double loss_scale = 1;              // of the gradient: 1 / labelled tokens of the global batch
  bool training = true;               // false: only the loss, no gradient
  Probe probe = {};                   // may be empty
  bool deterministic = false;         // two runs give the same bits, at whatever speed
  Device planned = Device::cpu;       // on the meta device: where the run that is planned computes
  WeightProducts* waiting = nullptr;  // where products of weights wait; null: they run at once
  ParameterTraffic* traffic = nullptr;  // null: all parameters are here, and nobody sums gradients
  int last_micro_batch = -1;            // the last to add to the gradients of this step

  /// The device whose kernels compute, or on the meta device would.
  Device target() const { return compute.device() == Device::meta ? planned : compute.device(); }
  Tensor weight(const Parameter& p) const { return parameters.value(p); }
  Tensor gradient(const Parameter& p) const { return parameters.gradient(p); }
  /// A product that adds to a parameter's gradient. All go through here, so that a schedule can
  /// hold them back.
  void weight_gradient(const MatmulArgs& args) {
    waiting != nullptr ? waiting->add(args, compute) : matmul(args, compute);
  }

  // ---- Where the model's loops are, unit by unit (parallel/data/parameter_traffic.hpp)

  void begin_forward(int unit) {
    if (traffic != nullptr) traffic->begin_forward(unit, compute);
  }
  void end_forward(int unit) {
    if (traffic != nullptr) traffic->end_forward(unit);
  }
  void begin_backward(int unit) {
    if (traffic != nullptr) traffic->begin_backward(unit, compute);
  }
  /// After the last micro-batch the unit is complete, but where products of weights wait.
  void end_backward(int unit, const Frame& frame) {
    if (traffic != nullptr) traffic->end_backward(unit, compute);
    complete_after(frame, unit);
  }
  void begin_gradients(int unit) {
    if (traffic != nullptr) traffic->begin_gradients(unit, compute);
  }
  void end_gradients(int unit, const Frame& frame) {
    if (traffic != nullptr) traffic->end_gradients(unit, compute);
    complete_after(frame, unit);
  }
  /// The unit has its last gradient of this step.
  void complete(int unit) {
    if (traffic != nullptr) traffic->complete(unit, compute);
  }
  void complete_after(const Frame& frame, int unit) {
    if (frame.micro_batch() == last_micro_batch && waiting == nullptr) complete(unit);
  }

  void observe(const Frame& frame, std::string_view name, const Tensor& value,
               const RowPlace& place = {}) const;
  /// As "layers.<layer>.<name>".
  void observe(const Frame& frame, int layer, const char* name, const Tensor& value,
               const RowPlace& place = {}) const {
    if (probe) observe(frame, concat("layers.", layer, ".", name), value, place);
  }
};

/// A tensor that may still be on its way.
struct Arriving {
  Tensor tensor;
  Event arrived = {};

  /// The tensor, for what is enqueued on `compute` from here on. May be called again.
  const Tensor& await(Stream& compute) const {
    compute.wait(arrived);
    return tensor;
  }
};

/// One branch off the residual stream, a token mixer or an MLP, with explicit backward. Gradients
/// of parameters are added, never overwritten. Over the tensor axis y and dx are partial sums.
class Layer {
 public:
  virtual ~Layer() = default;
  /// x, y: [R, C], R = B T rows; y is overwritten. An absent y is not asked for: then only what
  /// backward needs is. Pushes onto the frame what backward needs, marked with the policies that
  /// keep it, and leaves alone what frame.present(). On return ctx.compute has waited for every
  /// transfer: slots that are dropped go with the layer.
  virtual void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) = 0;
  /// dx: overwritten with the gradient of x; may not be dy. x: as in forward, though it may be
  /// elsewhere; awaited where it is first read. Pops what forward pushed.
  virtual void backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                        StepContext& ctx) = 0;
  virtual void visit(const std::function<void(Parameter&)>& f) = 0;
};

}  // namespace weft
