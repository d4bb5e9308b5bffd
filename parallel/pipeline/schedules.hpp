// Pipeline schedules as data: which stage does what in which order. Pure functions of three
// numbers; no communication is in them. An executor derives it: it receives what an action's
// source() hands over before the action, and sends to its target() after it.
//
// The model is cut into stages x chunks pieces of layers, and a stage owns `chunks` of them. A new
// schedule is a file that defines its maker and a line in schedules.cpp.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace weft {

enum class ActionKind {
  forward,
  backward,         // gradients of the input and of the weights together
  backward_input,   // the gradient of the input alone, which the piece before waits for
  backward_weight,  // the gradients of the weights, any time after backward_input
};

struct PipelineAction {
  ActionKind kind;
  int micro_batch;
  int chunk = 0;  // of the stage's own
  bool operator==(const PipelineAction&) const = default;
};

/// Which pieces of the model a stage owns.
enum class PipelinePlacement {
  loop,   // chunk c of stage s is piece c p + s: the model goes round the stages, `chunks` times
  zigzag  // odd chunks run from the last stage to the first: with two chunks a V, in which the last
          // piece lies on stage 0
};

struct PipelineShape {
  int stages;         // p
  int micro_batches;  // m
  int chunks = 1;     // v, of every stage
};

/// Where a piece of the model lies.
struct PipelinePlace {
  int stage;
  int chunk;
  bool operator==(const PipelinePlace&) const = default;
};

struct PipelineSchedule {
  PipelineShape shape;
  PipelinePlacement placement = PipelinePlacement::loop;
  /// [stage][in this order]. Every micro-batch goes forward and backward once through every chunk,
  /// and the micro-batches of a chunk in ascending order, so that gradients of weights add up in
  /// the order of one rank and the frames of a chunk retire first in, first out.
  std::vector<std::vector<PipelineAction>> actions{};

  int pieces() const { return shape.stages * shape.chunks; }
  /// The piece that lies there, 0 to pieces() - 1 from the embedding to the loss; and the reverse.
  int piece(PipelinePlace place) const;
  PipelinePlace place(int piece) const;

  /// Whose hand-over an action of `stage` needs: the output of the piece before going forward, the
  /// gradient from the piece after it going backward. Nothing at the model's ends, and nothing for
  /// backward_weight. It is the same stage where a zigzag turns, and with one stage: nothing
  /// travels then.
  std::optional<PipelinePlace> source(int stage, const PipelineAction& action) const;
  /// Who needs what the action makes; the same rules.
  std::optional<PipelinePlace> target(int stage, const PipelineAction& action) const;
};

struct PipelineScheduleKind {
  const char* name;
  const char* summary;  // one line
  int chunks;           // that a stage must have; 0: any number
  PipelineSchedule (*make)(const PipelineShape& shape);
};

std::span<const PipelineScheduleKind> pipeline_schedules();

/// The schedule of that name, of any number of stages and micro-batches. Throws Error(config) on an
/// unknown name, on a number below one and on chunks that the schedule does not have.
PipelineSchedule pipeline_schedule(std::string_view name, const PipelineShape& shape);

// Makers, one a file. The shape is legal.
PipelineSchedule make_gpipe(const PipelineShape& shape);
PipelineSchedule make_one_forward_one_backward(const PipelineShape& shape);
PipelineSchedule make_interleaved(const PipelineShape& shape);
PipelineSchedule make_zb_h1(const PipelineShape& shape);
PipelineSchedule make_zb_v(const PipelineShape& shape);

}  // namespace weft
