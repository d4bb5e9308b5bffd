#include "launch/pipeline_stages.hpp"

#include <algorithm>
#include <string_view>

#include "launch/trainer.hpp"
#include "parallel/comm/recording.hpp"
#include "parallel/pipeline/partition.hpp"

namespace weft {
namespace {

/// FLOPs of the forward and backward of one piece on the meta device.
double flops_of(const Config& config, const SequenceStrategies& strategies,
                const ModelPiece& piece) {
  double flops = 0;
  const auto world = make_recording_world(0, 1);
  const auto compute = make_meta_stream([&](const KernelCall& call) { flops += call.cost.flops; });
  ProcessMesh mesh(*world, {}, {}, false);
  Arena state("state", Device::meta, 0), slab("frame", Device::meta, 0);
  Arena scratch("scratch", Device::meta, 0);
  Model model(config.model, strategies, config.train.loss_slice, {}, {piece});
  const ParameterStore store(model.parameters(), config.train.precision, state);
  StepContext ctx{.mesh = mesh,
                  .compute = *compute,
                  .scratch = scratch,
                  .parameters = store,
                  .dtype = config.train.precision,
                  .loss_sum = state.allocate("loss", DType::f64, {1})};
  const int64_t tokens = config.data.seq_length;
  Frame frame(slab, 1, Cuts::even(tokens, 1), 0, 0, config.train.recompute);
  const std::vector<SegmentMap> segments = {SegmentMap::single(tokens)};
  Staging staging(Device::cpu, 0);
  model.begin(0, {.segments = segments, .tokens = {}, .labels = {}}, frame, staging, ctx);
  model.forward(0, frame, ctx);
  model.backward(0, scratch.allocate("d", ctx.dtype, {frame.rows(), config.model.hidden_size}),
                 frame, ctx);
  return flops;
}

}  // namespace

int chunks_of(const PipelineConfig& config) {
  if (config.chunks != 0) return static_cast<int>(config.chunks);
  return config.schedule == "interleaved" || config.schedule == "zb_v" ? 2 : 1;
}

void check_pipeline(const Config& config) {
  const int chunks = chunks_of(config.pipeline);
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    WEFT_REQUIRE(kind.name != config.pipeline.schedule || kind.chunks == 0 || kind.chunks == chunks,
                 ExitCode::config, "pipeline.chunks: expected ", kind.chunks,
                 " for pipeline.schedule = ", kind.name, ", got ", chunks);
  }
  const PipelineSchedule shortest = pipeline_schedule(
      config.pipeline.schedule, {.stages = 1, .micro_batches = 1, .chunks = chunks});
  const bool weights_wait = std::any_of(
      shortest.actions[0].begin(), shortest.actions[0].end(),
      [](const PipelineAction& action) { return action.kind == ActionKind::backward_weight; });
  WEFT_REQUIRE(!weights_wait || config.optimizer.zero == 1, ExitCode::config,
               "optimizer.zero: expected 1 with pipeline.schedule = ", config.pipeline.schedule,
               ", whose gradients of weights come after a unit's turn, got ",
               config.optimizer.zero);
  const int64_t stages = config.mesh.along(Axis::pipeline);
  const int64_t layers = config.model.num_hidden_layers;
  const bool fewer_stages = chunks <= layers;
  WEFT_REQUIRE(
      stages * chunks <= layers, ExitCode::config, chunks > 1 ? "pipeline.chunks" : "mesh.pipeline",
      ": expected no more stages x chunks than model.num_hidden_layers = ", layers, ", got ",
      stages, " x ", chunks, "; nearest: ", fewer_stages ? "mesh.pipeline: " : "pipeline.chunks: ",
      fewer_stages ? layers / chunks : layers);
}

int64_t micro_batches_of(const Config& config) {
  const Cuts samples = Cuts::even(config.train.global_batch_size, config.mesh.along(Axis::data));
  const int64_t size = config.train.micro_batch_size;
  return (samples.largest() + size - 1) / size;
}

PipelineSchedule schedule_of(const Config& config) {
  return pipeline_schedule(config.pipeline.schedule,
                           {.stages = config.mesh.along(Axis::pipeline),
                            .micro_batches = static_cast<int>(micro_batches_of(config)),
                            .chunks = chunks_of(config.pipeline)});
}

std::vector<double> layer_flops(const Config& config) {
  Config alone = config;
  alone.mesh = {};
  const SequenceStrategies strategies = named_strategies(alone);
  const int layers = static_cast<int>(config.model.num_hidden_layers);
  std::vector<double> flops;
  for (int i = 0; i < layers; ++i) {
    const ModelPiece piece{.begin = i, .end = i + 1, .embedding = i == 0, .head = i + 1 == layers};
    flops.push_back(flops_of(alone, strategies, piece));
  }
  return flops;
}

std::vector<ModelPiece> pieces_of(const Config& config) {
  check_pipeline(config);
  const int layers = static_cast<int>(config.model.num_hidden_layers);
  const int count = config.mesh.along(Axis::pipeline) * chunks_of(config.pipeline);
  const Cuts cuts =
      count == 1 ? Cuts::even(layers, 1) : balanced_pieces(layer_flops(config), count);
  std::vector<ModelPiece> pieces;
  for (int piece = 0; piece < count; ++piece) {
    pieces.push_back({.begin = static_cast<int>(cuts.begin(piece)),
                      .end = static_cast<int>(cuts.end(piece)),
                      .embedding = piece == 0,
                      .head = piece + 1 == count});
  }
  return pieces;
}

std::vector<ModelPiece> pieces_of_stage(const PipelineSchedule& schedule,
                                        const std::vector<ModelPiece>& pieces, int stage) {
  std::vector<ModelPiece> own;
  for (int chunk = 0; chunk < schedule.shape.chunks; ++chunk) {
    own.push_back(pieces[schedule.piece({stage, chunk})]);
  }
  return own;
}

}  // namespace weft
