// From a config to the stages of its pipeline: schedule, micro-batches, and which layers lie where.
#pragma once

#include <vector>

#include "launch/config.hpp"
#include "models/model.hpp"
#include "parallel/pipeline/schedules.hpp"

namespace weft {

/// Pieces of the model that a stage has: pipeline.chunks, or where that is auto what the schedule
/// has: one, or two of interleaved and zb_v.
int chunks_of(const PipelineConfig& config);

/// Throws Error(config) with one line "key: expected ..." when the schedule does not have as many
/// chunks, or the model too few layers for a piece each.
void check_pipeline(const Config& config);

/// What every data rank runs in a step; those with fewer samples end with some that have none.
int64_t micro_batches_of(const Config& config);

PipelineSchedule schedule_of(const Config& config);

/// FLOPs of one micro-batch's forward and backward in every layer; the embedding's are with the
/// first, the head's with the last. Found by running them on the meta device, on one rank.
std::vector<double> layer_flops(const Config& config);

/// All pieces of the model in its order, balanced by layer_flops.
std::vector<ModelPiece> pieces_of(const Config& config);

/// Those of one stage, by chunk.
std::vector<ModelPiece> pieces_of_stage(const PipelineSchedule& schedule,
                                        const std::vector<ModelPiece>& pieces, int stage);

}  // namespace weft
