// The executor: runs a stage's list of actions, with the transfers between them.
//
//   receives  a channel has one buffer at its receiver. The receive of the next message that the
//             list takes is posted as soon as the one before was copied out, so that it arrives
//             while the stage computes.
//   outputs   are sent from where the piece leaves them, which is where they stay until its
//             backward.
//   gradients are copied to a buffer of their channel and sent from there while the stage goes on.
//
// Within a stage, where a zigzag turns or with one stage, a copy takes the place of a transfer: of
// an output into the next piece's input, of a gradient over the output that it is the gradient of.
#pragma once

#include "parallel/layer.hpp"
#include "parallel/pipeline/channels.hpp"
#include "parallel/pipeline/schedules.hpp"

namespace weft {

/// What a stage computes, as its executor sees it. Pieces hand over matrices [rows, width] of
/// StepContext::dtype.
class StageWork {
 public:
  virtual ~StageWork() = default;

  /// Rows of this rank in a micro-batch; 0 is legal. The same on every stage.
  virtual int64_t rows(int micro_batch) const = 0;
  virtual int64_t width() const = 0;
  /// The layer that the input of `piece` enters: what passes there is booked under its name.
  virtual int layer(int piece) const = 0;

  /// Makes room for a micro-batch in a chunk of the stage. Returns where its input shall be, which
  /// the executor fills; absent for the first piece of the model.
  virtual Tensor begin(int chunk, int micro_batch) = 0;
  /// Returns the output, which stays in place until backward; absent for the last piece. Nobody
  /// reads it in backward: a gradient may lie there by then.
  virtual Tensor forward(int chunk, int micro_batch) = 0;
  /// d: the gradient of the output becomes the gradient of the input, in place; undefined before
  /// for the last piece and after for the first. `kind`: backward, or backward_input alone.
  virtual void backward(ActionKind kind, int chunk, int micro_batch, const Tensor& d) = 0;
  /// What backward_input has left.
  virtual void backward_weight(int chunk, int micro_batch) = 0;
};

class PipelineExecutor {
 public:
  /// Both must outlive the executor, which runs the stage of the channels.
  PipelineExecutor(const PipelineSchedule& schedule, PipelineChannels& channels)
      : schedule_(schedule), channels_(channels) {}

  /// The stage's part of one step; collective over the stages. Buffers come from ctx.scratch. On
  /// return ctx.compute has waited for every transfer.
  void run(StageWork& work, StepContext& ctx);

 private:
  const PipelineSchedule& schedule_;
  PipelineChannels& channels_;
};

}  // namespace weft
