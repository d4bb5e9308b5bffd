#include "launch/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "launch/learning_rate.hpp"
#include "launch/pipeline_stages.hpp"
#include "models/initial_values.hpp"
#include "models/tensor_axis.hpp"
#include "parallel/comm/recording.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

AdamWConfig adamw_config(const OptimizerConfig& config) {
  return {.beta1 = config.betas[0],
          .beta2 = config.betas[1],
          .eps = config.eps,
          .weight_decay = config.weight_decay,
          .grad_clip = config.grad_clip};
}

/// Where the model runs, or on the meta device where the run that is planned will.
Device target_of(const Config& config, const World& world) {
  const Device wanted = config.train.device == DeviceChoice::cuda ? Device::cuda : Device::cpu;
  WEFT_CHECK(world.device() == Device::meta || world.device() == wanted, "train.device is ",
             name(wanted), ", the ranks are on ", name(world.device()));
  return wanted;
}

std::unique_ptr<Stream> make_compute_stream(const World& world,
                                            std::map<std::string, Cost>& kernels) {
  if (world.device() != Device::meta) return world.make_compute_stream();
  return make_meta_stream([&kernels](const KernelCall& call) { kernels[call.name] += call.cost; });
}

SequenceStrategies strategies_of(const Config& config, const StandIns& stand_ins) {
  SequenceStrategies strategies = named_strategies(config);
  if (stand_ins.attention) strategies.attention = {stand_ins.attention};
  if (stand_ins.scan) strategies.scans = {stand_ins.scan};
  return strategies;
}

/// The mesh, with the groups that a store's parameters and the optimizer need.
ProcessMesh& with_holders(ProcessMesh& mesh, World& world, const ParameterStore& store,
                          OptimizerName optimizer) {
  std::set<Holders> kinds;
  if (optimizer == OptimizerName::muon) kinds.insert({.tensor = mesh.size(Axis::tensor)});
  for (const ParameterBucket& bucket : store.buckets()) kinds.insert(bucket.holders);
  mesh.make_holders(world, kinds);
  return mesh;
}

/// Arenas for the slots of a plan, of the bytes that `planned` says, or measuring on meta.
StageSlots make_slots(SlotPlan plan, const char* name, Device device,
                      const std::vector<int64_t>& planned, Stream& stream) {
  WEFT_CHECK(device == Device::meta || std::ssize(planned) == plan.count, name, ": ",
             planned.size(), " planned, not ", plan.count);
  StageSlots slots{.plan = std::move(plan), .slabs = {}};
  for (int i = 0; i < slots.plan.count; ++i) {
    slots.slabs.emplace_back(name, device, device == Device::meta ? 0 : planned[i], &stream);
  }
  return slots;
}

std::vector<int64_t> peaks_of(const StageSlots& slots) {
  std::vector<int64_t> peaks;
  for (const Arena& slab : slots.slabs) peaks.push_back(slab.peak());
  return peaks;
}

int stage_of(const Config& config, int rank) {
  return coordinate_of(config.mesh, rank)[static_cast<int>(Axis::pipeline)];
}

}  // namespace

int64_t MemoryPlan::frames() const {
  return std::accumulate(frame_slots.begin(), frame_slots.end(), int64_t{0});
}

int64_t MemoryPlan::products() const {
  return std::accumulate(product_slots.begin(), product_slots.end(), int64_t{0});
}

void MemoryPlan::check(int64_t step, const MemoryPlan& real) const {
  const auto text = [](const MemoryPlan& plan) {
    const auto list = [](const std::vector<int64_t>& slots) {
      std::string bytes;
      for (const int64_t slot : slots) bytes += concat(bytes.empty() ? "" : " + ", slot);
      return bytes.empty() ? "0" : bytes;
    };
    return concat("state ", plan.state, ", frames ", list(plan.frame_slots), ", waiting products ",
                  list(plan.product_slots), ", scratch ", plan.scratch, ", staging ", plan.staging);
  };
  WEFT_REQUIRE(real == *this, ExitCode::comparison, "step ", step,
               ": peak bytes planned: ", text(*this), "; in the arenas: ", text(real));
}

double StepPlan::flops() const {
  double sum = 0;
  for (const auto& [name, cost] : kernels) sum += cost.flops;
  return sum;
}

Trainer::Trainer(const Config& config, World& world, const MemoryPlan& memory,
                 const StandIns& stand_ins)
    : config_(config),
      target_(target_of(config, world)),
      staging_(target_, memory.staging),
      reports_(world.device(), 2, kStepsInFlight),
      compute_(make_compute_stream(world, kernels_)),
      schedule_(schedule_of(config)),
      pieces_(pieces_of(config)),
      state_("state", world.device(), memory.state, compute_.get()),
      scratch_("scratch", world.device(), memory.scratch, compute_.get()),
      frames_(make_slots(frame_slots(schedule_, stage_of(config, world.rank())), "frames",
                         world.device(), memory.frame_slots, *compute_)),
      products_(make_slots(weight_slots(schedule_, stage_of(config, world.rank())),
                           "waiting products", world.device(), memory.product_slots, *compute_)),
      mesh_(world, config.mesh, {&predicted_, &counted_}, config.train.strict),
      channels_(world, config.mesh, schedule_, {&predicted_, &counted_}, config.train.strict),
      sequence_cuts_(Cuts::even(config.data.seq_length, mesh_.size(Axis::sequence))),
      model_(config.model, strategies_of(config, stand_ins), config.train.loss_slice,
             {.rank = mesh_.at(Axis::tensor), .size = mesh_.size(Axis::tensor)}, pieces()),
      store_(model_.parameters(), config.train.precision, state_,
             static_cast<int>(config.optimizer.zero)),
      traffic_(store_, with_holders(mesh_, world, store_, config.optimizer.name), state_),
      optimizer_(adamw_config(config.optimizer), traffic_, state_,
                 {.momentum = config.optimizer.muon_momentum}, make_muon()),
      totals_(state_.allocate_zeros("totals", DType::f64, {2})) {
  if (world.device() != Device::meta) {
    set_initial_values(start_values(), config.train.seed, *compute_);
  }
}

void Trainer::enqueue(int64_t step, std::span<const Batch> batches, int64_t global_labels) {
  WEFT_CHECK(reports_.unread() < kStepsInFlight, reports_.unread(),
             " steps have a report that was not read");
  const Tensor loss_sum = totals_.slice(0, 0, 1), squared_norm = totals_.slice(0, 1, 2);
  StepContext ctx{.mesh = mesh_,
                  .compute = *compute_,
                  .scratch = scratch_,
                  .parameters = store_,
                  .dtype = config_.train.precision,
                  .loss_sum = loss_sum,
                  // A batch without a single label has no gradient, whatever the scale.
                  .loss_scale = 1.0 / static_cast<double>(std::max<int64_t>(global_labels, 1)),
                  .probe = probe_,
                  .deterministic = config_.train.deterministic,
                  .planned = target_,
                  .traffic = &traffic_,
                  .last_micro_batch = static_cast<int>(batches.size()) - 1};
  traffic_.begin_step(*compute_);
  fill({.y = loss_sum, .value = 0}, *compute_);
  staging_.begin_step();

  compute_gradients(batches, ctx);
  optimizer_.reduce(squared_norm, ctx);
  if (before_update_) before_update_();
  const double rate = learning_rate(config_.optimizer, step, config_.train.steps);
  optimizer_.update(rate, step + 1, squared_norm, ctx);

  const Scope scope(scratch_);
  const Tensor piece = scratch_.allocate("loss piece", DType::f64, {1});
  compute_->wait(mesh_.everyone().all_reduce(
      loss_sum, piece, {-1, Tag::Purpose::loss, Tag::Pass::update, 0}, *compute_));
  reports_.send(totals_, *compute_);
  loss_scales_.push_back(ctx.loss_scale);
}

StepReport Trainer::report() {
  const std::vector<double> totals = reports_.read();
  const double scale = loss_scales_.front();
  loss_scales_.pop_front();
  return {.loss = totals[0] * scale,
          .grad_norm = std::sqrt(totals[1]),
          .finished = reports_.finished()};
}

StepReport Trainer::step(int64_t step, std::span<const Batch> batches, int64_t global_labels) {
  WEFT_CHECK(reports_.unread() == 0, reports_.unread(),
             " earlier steps have a report that was not read");
  enqueue(step, batches, global_labels);
  return report();
}

void Trainer::compute_gradients(std::span<const Batch> batches, StepContext& ctx) {
  std::vector<TokenShard> shards;
  for (const Batch& batch : batches) {
    shards.push_back({.segments = batch.segments, .tokens = batch.tokens, .labels = batch.labels});
  }
  ModelStage stage(model_,
                   {.schedule = schedule_,
                    .pieces = pieces_,
                    .tokens = sequence_cuts_,
                    .shard = mesh_.at(Axis::sequence),
                    .recompute = config_.train.recompute},
                   std::move(shards), frames_, products_, staging_, ctx);
  PipelineExecutor(schedule_, channels_).run(stage, ctx);
}

std::optional<Muon> Trainer::make_muon() {
  if (config_.optimizer.name != OptimizerName::muon) return {};
  ParameterBlocks blocks;
  for (int place = 0; place < mesh_.size(Axis::tensor); ++place) {
    Model there(config_.model, {}, /*loss_slice=*/1,
                {.rank = place, .size = mesh_.size(Axis::tensor)}, pieces());
    blocks.push_back(blocks_of(there.parameters()));
  }
  return Muon(traffic_, mesh_, blocks);
}

std::vector<ModelPiece> Trainer::pieces() const {
  return pieces_of_stage(schedule_, pieces_, channels_.stage());
}

std::vector<HeldValues> Trainer::start_values() const {
  std::vector<HeldValues> values = held();
  const std::vector<HeldValues> of_masters = masters();
  values.insert(values.end(), of_masters.begin(), of_masters.end());
  return values;
}

void Trainer::set_compute(std::unique_ptr<Stream> stream) {
  WEFT_CHECK(compute_->device() == stream->device() && stream->device() != Device::cuda,
             "the arenas of a GPU know their stream");
  compute_ = std::move(stream);
}

void Trainer::clear_ledgers() {
  predicted_.clear();
  counted_.clear();
}

MemoryPlan Trainer::peaks() const {
  return {.state = state_.peak(),
          .frame_slots = peaks_of(frames_),
          .product_slots = peaks_of(products_),
          .scratch = scratch_.peak(),
          .staging = staging_.peak()};
}

std::vector<Arena::Item> Trainer::at_peak() const {
  std::map<std::string_view, Arena::Item> by_name;
  const auto add_items = [&](const Arena& arena) {
    for (const Arena::Item& item : arena.at_peak()) {
      auto [entry, first] = by_name.try_emplace(item.name, item);
      if (!first) entry->second.bytes += item.bytes;
    }
  };
  for (const Arena* arena : {&state_, &scratch_}) add_items(*arena);
  for (const StageSlots* slots : {&frames_, &products_}) {
    for (const Arena& slab : slots->slabs) add_items(slab);
  }
  std::vector<Arena::Item> items;
  for (const auto& [name, item] : by_name) items.push_back(item);
  std::stable_sort(items.begin(), items.end(),
                   [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  return items;
}

std::vector<Batch> batch_shapes(const Config& config, const Coordinate& at) {
  const auto cuts = [&](int64_t total, Axis axis) {
    return Cuts::even(total, config.mesh.along(axis));
  };
  const Cuts tokens = cuts(config.data.seq_length, Axis::sequence);
  const Cuts samples = cuts(config.train.global_batch_size, Axis::data);
  const int sequence_shard = at[static_cast<int>(Axis::sequence)];
  std::vector<Batch> batches;
  int64_t left = samples.size(at[static_cast<int>(Axis::data)]);
  for (int64_t i = micro_batches_of(config); i > 0; --i) {
    const int64_t count = std::min(left, config.train.micro_batch_size);
    left -= count;
    batches.push_back(
        {.segments = std::vector<SegmentMap>(count, SegmentMap::single(config.data.seq_length)),
         .begin = tokens.begin(sequence_shard),
         .end = tokens.end(sequence_shard),
         .tokens = {},
         .labels = {}});
  }
  return batches;
}

AttentionSetting attention_setting(const Config& config, int ranks) {
  // Of heads cut unevenly the last rank has the most.
  const int tensor = config.mesh.along(Axis::tensor);
  const AttentionHeads heads = attention_heads(config.model, {.rank = tensor - 1, .size = tensor});
  return {.batch = std::min(config.train.micro_batch_size, config.train.global_batch_size),
          .cuts = Cuts::even(config.data.seq_length, ranks),
          .heads = heads.query.size(),
          .kv_heads = heads.key_value.size(),
          .head_dim = config.model.head_dim,
          .dtype = config.train.precision,
          .causal = config.model.causal,
          .forwards = config.train.recompute == Recompute::layer ? 2 : 1};
}

SequenceStrategies named_strategies(const Config& config) {
  const AttentionStrategy* cheapest = nullptr;  // sought once, and where a layer asks for it
  SequenceStrategies strategies{.attention = {},
                                .scans = {},
                                .scan_options = {.zeco_blocks = config.sequence.zeco_blocks,
                                                 .group = static_cast<int>(config.sequence.group)}};
  for (const std::string& name : config.sequence.attention) {
    if (name == "auto" && cheapest == nullptr) {
      cheapest = &cheapest_strategy(attention_setting(config, config.mesh.along(Axis::sequence)));
    }
    strategies.attention.push_back(name == "auto" ? cheapest : &attention_strategy(name));
  }
  for (const std::string& name : config.sequence.state) {
    strategies.scans.push_back(&state_scan(name == "auto" ? "zeco" : name));
  }
  return strategies;
}

StepPlan plan_step(const Config& config, int rank) {
  const auto world = make_recording_world(rank, config.mesh.ranks());
  Trainer trainer(config, *world, {});
  trainer.step(0, batch_shapes(config, coordinate_of(config.mesh, rank)), 1);
  return {.parameters = trainer.parameters().count(),
          .memory = trainer.peaks(),
          .at_peak = trainer.at_peak(),
          .pieces = trainer.pieces(),
          .kernels = trainer.kernels(),
          .bytes = trainer.predicted().entries()};
}

}  // namespace weft
