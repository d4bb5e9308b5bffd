// ZB-V (Qi et al., arXiv 2401.10241): two chunks a stage, placed in a V, so that stage 0 has the
// loss and begins its backward early. Made for f = b = w of a chunk:
//   frames  min(2 p, 2 m, m + s + 1) of chunks on stage s: with m >= 2 p - 1 the memory of 1F1B's
//           first stage, on all stages
//   span    6 m + max(p - 1, 4 (p - 1) - 2 (m - 1)); with m >= 2 p - 1 no stage waits between its
//           first action and its last, and p - 1 is how much later the last stage begins
// Fewer micro-batches run the schedule of 2 p - 1 without those that are not there, which waits for
// nothing that it did not wait for before.
#include <algorithm>
#include <array>
#include <utility>

#include "parallel/pipeline/schedules.hpp"

namespace weft {
namespace {

/// The actions of one stage, each for the next micro-batch of its kind and chunk.
class StageActions {
 public:
  void forward(int chunk) { push(ActionKind::forward, forwards_, chunk); }
  void backward_input(int chunk) { push(ActionKind::backward_input, inputs_, chunk); }
  void backward_weight(int chunk) { push(ActionKind::backward_weight, weights_, chunk); }
  void backward(int chunk) {
    backward_input(chunk);
    backward_weight(chunk);
  }

  int forwards(int chunk) const { return forwards_[chunk]; }
  bool weights_wait(int chunk) const { return weights_[chunk] < inputs_[chunk]; }
  std::vector<PipelineAction> take() { return std::move(actions_); }

 private:
  using Count = std::array<int, 2>;  // of a chunk

  void push(ActionKind kind, Count& count, int chunk) {
    actions_.push_back({kind, count[chunk]++, chunk});
  }

  std::vector<PipelineAction> actions_;
  Count forwards_{}, inputs_{}, weights_{};
};

std::vector<PipelineAction> actions_of(int stage, int stages, int micro_batches) {
  StageActions next;
  // Fill: down the V until its other arm comes back, then both arms until a gradient does.
  for (int i = 0; i < 2 * (stages - stage) - 1; ++i) next.forward(0);
  for (int i = 0; i < stage; ++i) {
    next.forward(1);
    next.forward(0);
  }
  for (int i = 0; i < stages - stage; ++i) {
    next.forward(1);
    next.backward(1);
  }
  // Steady: a frame of each arm comes, one goes.
  while (next.forwards(1) < micro_batches) {
    if (next.forwards(0) < micro_batches) next.forward(0);
    next.backward(0);
    next.forward(1);
    next.backward(1);
  }
  // Drain: gradients of inputs first, which other stages wait for.
  for (int i = 0; i < stage; ++i) {
    next.backward_input(0);
    next.backward_input(1);
  }
  for (int i = 0; i < stages - stage; ++i) {
    next.backward_input(0);
    next.backward_weight(0);
  }
  for (const int chunk : {1, 0}) {
    while (next.weights_wait(chunk)) next.backward_weight(chunk);
  }
  return next.take();
}

}  // namespace

PipelineSchedule make_zb_v(const PipelineShape& shape) {
  const int micro_batches = std::max(shape.micro_batches, 2 * shape.stages - 1);
  PipelineSchedule schedule{.shape = shape, .placement = PipelinePlacement::zigzag};
  for (int stage = 0; stage < shape.stages; ++stage) {
    std::vector<PipelineAction>& actions =
        schedule.actions.emplace_back(actions_of(stage, shape.stages, micro_batches));
    std::erase_if(actions, [&](const PipelineAction& action) {
      return action.micro_batch >= shape.micro_batches;
    });
  }
  return schedule;
}

}  // namespace weft
