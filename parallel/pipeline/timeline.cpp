#include "parallel/pipeline/timeline.hpp"

#include <algorithm>
#include <utility>

#include "src/core/check.hpp"

namespace weft {
namespace {

const char* name_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
      return "forward";
    case ActionKind::backward:
      return "backward";
    case ActionKind::backward_input:
      return "backward_input";
    case ActionKind::backward_weight:
      return "backward_weight";
  }
  return "";
}

/// What an action hands over: the output or the gradient of a piece, for a micro-batch.
struct Message {
  int piece;
  int micro_batch;
  double arrives;
};

/// Hand-overs of one direction from one stage to another.
struct Lane {
  std::vector<Message> sent;
  std::vector<double> taken;  // when; no longer than sent

  bool has_message() const { return taken.size() < sent.size(); }
  bool has_place(int slots) const {
    return sent.size() - taken.size() < static_cast<size_t>(slots);
  }
  /// When the place of the next message became free.
  double free_since(int slots) const {
    const size_t limit = static_cast<size_t>(slots);
    return sent.size() < limit ? 0 : taken[sent.size() - limit];
  }
};

class Simulation {
 public:
  Simulation(const PipelineSchedule& schedule, const ActionCosts& costs, int slots)
      : schedule_(schedule),
        costs_(costs),
        slots_(slots),
        stages_(schedule.actions.size()),
        lanes_(2 * stages_.size() * stages_.size()),
        forwards_(schedule.pieces() * schedule.shape.micro_batches),
        inputs_(forwards_.size()) {}

  Timeline run() {
    for (bool any = true; any;) {
      any = false;
      for (int stage = 0; stage < std::ssize(stages_); ++stage) {
        while (advance(stage)) any = true;
      }
    }
    check_end();
    Timeline times;
    for (Stage& stage : stages_) times.push_back(std::move(stage.times));
    return times;
  }

 private:
  struct Stage {
    std::vector<ActionTime> times;  // of the actions so far
    double free = 0;                // since when it can go on
    Lane* full = nullptr;           // where its last hand-over found no place
    Message waiting{};              // that hand-over
  };

  /// One action, or a hand-over that found no place before; false when the stage has to wait.
  bool advance(int index) {
    Stage& stage = stages_[index];
    if (stage.full != nullptr) return hand_over(stage, *stage.full, stage.waiting);
    const auto& actions = schedule_.actions[index];
    if (stage.times.size() == actions.size()) return false;

    const PipelineAction& action = actions[stage.times.size()];
    check_own(index, action);
    double begin = stage.free;
    if (const auto source = schedule_.source(index, action)) {
      if (source->stage == index) {
        if (!made(action.kind, *source, action.micro_batch)) {
          fail(index, action, "comes before what its own stage hands over");
        }
      } else {
        Lane& lane = lane_of(action.kind, source->stage, index);
        if (!lane.has_message()) return false;
        const Message& message = lane.sent[lane.taken.size()];
        if (message.piece != schedule_.piece(*source) ||
            message.micro_batch != action.micro_batch) {
          fail(index, action,
               concat("what arrives is of micro-batch ", message.micro_batch, ", piece ",
                      message.piece));
        }
        begin = std::max(begin, message.arrives);
        lane.taken.push_back(begin);
      }
    }
    finish(index, action, begin);
    return true;
  }

  void finish(int index, const PipelineAction& action, double begin) {
    Stage& stage = stages_[index];
    stage.free = begin + costs_.of(action.kind);
    stage.times.push_back({begin, stage.free});
    if (action.kind == ActionKind::backward_weight) return;
    made(action.kind, {index, action.chunk}, action.micro_batch) = true;
    const auto target = schedule_.target(index, action);
    if (!target || target->stage == index) return;
    const int piece = schedule_.piece({index, action.chunk});
    hand_over(stage, lane_of(action.kind, index, target->stage),
              {piece, action.micro_batch, stage.free});
  }

  /// Puts `message` on its way when there is a place; false when the stage has to wait for one.
  bool hand_over(Stage& stage, Lane& lane, Message message) {
    stage.full = lane.has_place(slots_) ? nullptr : &lane;
    stage.waiting = message;
    if (stage.full != nullptr) return false;
    stage.free = std::max(stage.free, lane.free_since(slots_));
    message.arrives = stage.free + costs_.hand_over;
    lane.sent.push_back(message);
    return true;
  }

  /// That the action is one of this shape, and comes after what it needs of its own piece.
  void check_own(int index, const PipelineAction& action) {
    const PipelineShape& shape = schedule_.shape;
    if (action.micro_batch < 0 || action.micro_batch >= shape.micro_batches || action.chunk < 0 ||
        action.chunk >= shape.chunks) {
      fail(index, action, "there is no such micro-batch or chunk");
    }
    const PipelinePlace here{index, action.chunk};
    if (action.kind == ActionKind::backward_weight) {
      if (!made(ActionKind::backward_input, here, action.micro_batch)) {
        fail(index, action, "comes before its backward_input");
      }
    } else if (action.kind != ActionKind::forward) {
      if (!made(ActionKind::forward, here, action.micro_batch)) {
        fail(index, action, "comes before its forward");
      }
    }
  }

  void check_end() const {
    for (int index = 0; index < std::ssize(stages_); ++index) {
      const Stage& stage = stages_[index];
      const auto& actions = schedule_.actions[index];
      if (stage.full != nullptr) {
        fail(index, actions[stage.times.size() - 1], "waits for ever for a place to hand over to");
      }
      if (stage.times.size() < actions.size()) {
        fail(index, actions[stage.times.size()], "waits for ever for what it needs");
      }
    }
    for (const Lane& lane : lanes_) {
      WEFT_CHECK(!lane.has_message(), "nobody takes what piece ",
                 lane.sent[lane.taken.size()].piece, " hands over for micro-batch ",
                 lane.sent[lane.taken.size()].micro_batch);
    }
  }

  [[noreturn]] static void fail(int index, const PipelineAction& action, const std::string& what) {
    throw Error(ExitCode::internal, concat("stage ", index, ", ", text(action), ": ", what));
  }

  /// Outputs and gradients do not share a lane.
  Lane& lane_of(ActionKind kind, int from, int to) {
    const size_t pair = static_cast<size_t>(from) * stages_.size() + to;
    return lanes_[2 * pair + (kind == ActionKind::forward ? 0 : 1)];
  }

  /// Whether the output (forward) or the gradient of the input (backward) of a piece is there.
  std::vector<bool>::reference made(ActionKind kind, PipelinePlace place, int micro_batch) {
    const size_t index =
        static_cast<size_t>(schedule_.piece(place)) * schedule_.shape.micro_batches + micro_batch;
    return kind == ActionKind::forward ? forwards_[index] : inputs_[index];
  }

  const PipelineSchedule& schedule_;
  const ActionCosts& costs_;
  const int slots_;
  std::vector<Stage> stages_;
  std::vector<Lane> lanes_;              // [from][to][outputs, gradients]
  std::vector<bool> forwards_, inputs_;  // [piece][micro_batch]
};

}  // namespace

double ActionCosts::of(ActionKind kind) const {
  switch (kind) {
    case ActionKind::forward:
      return forward;
    case ActionKind::backward:
      return backward_input + backward_weight;
    case ActionKind::backward_input:
      return backward_input;
    case ActionKind::backward_weight:
      return backward_weight;
  }
  return 0;
}

Timeline timeline(const PipelineSchedule& schedule, const ActionCosts& costs, int slots) {
  WEFT_CHECK(slots >= 1, slots, " slots");
  WEFT_CHECK(std::ssize(schedule.actions) == schedule.shape.stages, schedule.actions.size(),
             " lists for ", schedule.shape.stages, " stages");
  return Simulation(schedule, costs, slots).run();
}

double span(const Timeline& times) {
  double last = 0;
  for (const auto& stage : times) last = std::max(last, stage.empty() ? 0 : stage.back().end);
  return last;
}

double span(const PipelineSchedule& schedule, const ActionCosts& costs) {
  return span(timeline(schedule, costs));
}

double bubble_share(const PipelineSchedule& schedule, const ActionCosts& costs) {
  double busy = 0;
  for (const auto& actions : schedule.actions) {
    for (const PipelineAction& action : actions) busy += costs.of(action.kind);
  }
  return 1 - busy / (schedule.shape.stages * span(schedule, costs));
}

std::vector<int> peak_frames(const PipelineSchedule& schedule) {
  std::vector<int> peaks;
  for (const auto& actions : schedule.actions) {
    int alive = 0, peak = 0;
    for (const PipelineAction& action : actions) {
      if (action.kind == ActionKind::forward) peak = std::max(peak, ++alive);
      if (action.kind == ActionKind::backward || action.kind == ActionKind::backward_weight) {
        --alive;
      }
    }
    peaks.push_back(peak);
  }
  return peaks;
}

std::string text(const PipelineAction& action) {
  return concat(name_of(action.kind), " of micro-batch ", action.micro_batch, ", chunk ",
                action.chunk);
}

}  // namespace weft
