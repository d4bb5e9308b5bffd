#include "parallel/pipeline/schedules.hpp"

#include "src/core/check.hpp"

namespace weft {
namespace {

constexpr PipelineScheduleKind kSchedules[] = {
    {"gpipe", "all forwards, then all backwards; every micro-batch is kept", 1, make_gpipe},
    {"1f1b", "one forward, one backward: gpipe's time with no more frames than stages", 1,
     make_one_forward_one_backward},
    {"interleaved", "1f1b over several chunks a stage: a shorter bubble for more hand-overs", 0,
     make_interleaved},
    {"zb_h1", "1f1b whose gradients of weights wait and fill the bubble, in the same memory", 1,
     make_zb_h1},
    {"zb_v", "two chunks a stage in a V: no holes where all parts take equal time", 2, make_zb_v},
};

/// The piece after `piece` in the direction of +1 or -1; nothing past the model's ends.
std::optional<PipelinePlace> neighbour(const PipelineSchedule& schedule, int piece, int direction) {
  const int other = piece + direction;
  if (other < 0 || other >= schedule.pieces()) return std::nullopt;
  return schedule.place(other);
}

}  // namespace

int PipelineSchedule::piece(PipelinePlace place) const {
  const bool back = placement == PipelinePlacement::zigzag && place.chunk % 2 == 1;
  return place.chunk * shape.stages + (back ? shape.stages - 1 - place.stage : place.stage);
}

PipelinePlace PipelineSchedule::place(int piece) const {
  const int chunk = piece / shape.stages, step = piece % shape.stages;
  const bool back = placement == PipelinePlacement::zigzag && chunk % 2 == 1;
  return {.stage = back ? shape.stages - 1 - step : step, .chunk = chunk};
}

std::optional<PipelinePlace> PipelineSchedule::source(int stage,
                                                      const PipelineAction& action) const {
  if (action.kind == ActionKind::backward_weight) return std::nullopt;
  const int before = action.kind == ActionKind::forward ? -1 : 1;
  return neighbour(*this, piece({stage, action.chunk}), before);
}

std::optional<PipelinePlace> PipelineSchedule::target(int stage,
                                                      const PipelineAction& action) const {
  if (action.kind == ActionKind::backward_weight) return std::nullopt;
  const int after = action.kind == ActionKind::forward ? 1 : -1;
  return neighbour(*this, piece({stage, action.chunk}), after);
}

std::span<const PipelineScheduleKind> pipeline_schedules() {
  return kSchedules;
}

PipelineSchedule pipeline_schedule(std::string_view name, const PipelineShape& shape) {
  std::string known;
  for (const PipelineScheduleKind& kind : kSchedules) {
    if (name != kind.name) {
      known += concat(known.empty() ? "" : ", ", kind.name);
      continue;
    }
    WEFT_REQUIRE(shape.stages >= 1 && shape.micro_batches >= 1, ExitCode::config,
                 "pipeline schedule ", name, ": expected at least 1 stage and 1 micro-batch, got ",
                 shape.stages, " and ", shape.micro_batches);
    WEFT_REQUIRE(kind.chunks == 0 ? shape.chunks >= 1 : shape.chunks == kind.chunks,
                 ExitCode::config, "pipeline schedule ", name, ": expected ",
                 kind.chunks == 0 ? "at least 1" : concat(kind.chunks),
                 kind.chunks == 2 ? " chunks" : " chunk", " of the model a stage, got ",
                 shape.chunks);
    return kind.make(shape);
  }
  throw Error(ExitCode::config,
              concat("pipeline schedule: expected one of ", known, ", got '", name, "'"));
}

}  // namespace weft
