#include "launch/train_run.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <numeric>
#include <utility>

#include "launch/byte_check.hpp"
#include "launch/deterministic_cost.hpp"
#include "launch/hf_weights.hpp"
#include "launch/job.hpp"
#include "launch/learning_rate.hpp"
#include "launch/parameter_checksum.hpp"
#include "launch/pipeline_stages.hpp"
#include "launch/report_error.hpp"
#include "launch/run_folder.hpp"
#include "parallel/pipeline/timeline.hpp"
#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/core/log.hpp"
#include "src/kernels/cuda/cudnn_attention.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// "ring, lightseq"
template <class Row>
std::string names_of(const std::vector<const Row*>& rows) {
  std::string names;
  for (const Row* row : rows) names += concat(names.empty() ? "" : ", ", row->name);
  return names;
}

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// FLOP/s of matrix products of the compute type on this rank: what MFU is a share of. All ranks
/// measure at the same time, so that ranks that share a core or a GPU do not count it twice.
double measure_matmul_rate(DType dtype, const World& world) {
  const bool cuda = world.device() == Device::cuda;
  const int64_t n = cuda ? 4096 : 384;
  const auto stream = world.make_compute_stream();
  Arena arena("matmul rate", world.device(), 3 * n * n * size_of(dtype), stream.get());
  const Tensor a = arena.allocate("a", dtype, {n, n}), b = arena.allocate("b", dtype, {n, n});
  const Tensor c = arena.allocate("c", dtype, {n, n});
  for (const Tensor& t : {a, b}) fill({.y = t, .value = 0.5}, *stream);
  const MatmulArgs product{.c = c, .a = a, .b = b};
  const auto run = [&] {
    matmul(product, *stream);
    stream->record().wait();
  };
  run();  // warm up
  const auto start = Clock::now();
  int count = 0;
  for (; seconds_since(start) < 0.05; ++count) run();
  return count * cost(product).flops / seconds_since(start);
}

/// Elements of all parameters of the model.
int64_t parameters_of(const ModelConfig& config) {
  Model whole(config, {}, /*loss_slice=*/1);
  int64_t count = 0;
  for (const Parameter* parameter : whole.parameters()) count += parameter->global_numel();
  return count;
}

/// FLOPs of a step of one rank, but for those that train.recompute adds: MFU counts what training
/// takes, not what is done twice to save memory. `plan` is the config's own.
double model_flops(Config config, int rank, const StepPlan& plan) {
  if (config.train.recompute == Recompute::none) return plan.flops();
  config.train.recompute = Recompute::none;
  return plan_step(config, rank).flops();
}

/// The sum over all ranks of one number, a double or 64 bits; set-up traffic, not booked.
template <class T>
T sum_over(Backend& all, T mine) {
  std::vector<T> values(all.size());
  values[all.rank()] = mine;
  const int64_t dims[] = {all.size()};
  all.all_gather(Tensor::view(values.data(), DType::f64, Device::cpu, dims),
                 Cuts::even(all.size(), all.size()));
  return std::accumulate(values.begin(), values.end(), T{});
}

/// The most memory this process has had resident.
int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace

TrainRun::TrainRun(const Config& config, int rank)
    : config_(config), rank_(rank), source_(open_samples(config)), plan_(plan_step(config, rank)) {}

void TrainRun::open_folder(const std::string& folder) {
  prepare_run_folder(folder, to_yaml(config_));
  log::add_file(folder + "/console.log");
  metrics_ = std::make_unique<MetricsWriter>(folder, config_.train.steps, config_.log.every);
  folder_ = folder;
}

ExitCode TrainRun::run(World& world) {
  whereabouts() = {rank_, -1};
  const auto all = world.everyone("set-up");
  step_flops_ = sum_over(*all, model_flops(config_, rank_, plan_));
  matmul_rate_ = sum_over(*all, measure_matmul_rate(config_.train.precision, world));
  if (config_.train.deterministic && has_other_backward(config_) && cuda::has_cudnn()) {
    if (metrics_) weigh_backward(world);
    all->barrier();  // before it nobody takes memory for arenas
  }
  // What the context, the libraries and NCCL's groups take is measured, what Weft takes is planned.
  const bool on_gpu = world.device() == Device::cuda;
  const int64_t before = on_gpu ? cuda::bytes_in_use() : 0;
  Trainer trainer(config_, world, plan_.memory);  // now, so that the GPU had room to measure in
  if (on_gpu) {
    group_bytes_ = world.group_bytes();
    predicted_card_bytes_ = before + plan_.memory.peak() + cuda::kWorkspaceBytes + group_bytes_;
  }
  if (!config_.from_hf.empty())
    load_hf_weights(config_.from_hf, config_.model, trainer.start_values(), trainer.compute());
  const BatchLoader loader =
      make_batch_loader(config_, *source_, coordinate_of(config_.mesh, rank_));
  if (metrics_) describe();
  // A GPU has the next step before the host waits for this one's report.
  const int64_t in_flight = on_gpu ? Trainer::kStepsInFlight : 1;
  std::deque<StepMetrics> begun;  // whose reports were not read
  last_end_ = Clock::now();
  for (int64_t step = 0, next = 0; step < config_.train.steps; ++step) {
    for (; next < std::min(step + in_flight, config_.train.steps); ++next) {
      whereabouts().step = next;
      fail_on_demand(rank_, next);
      begun.push_back(begin_step(trainer, loader, next));
    }
    whereabouts().step = step;
    StepMetrics metrics = std::move(begun.front());
    begun.pop_front();
    finish_step(trainer, metrics);
    if (metrics_) metrics_->write(metrics);
    if (!std::isfinite(metrics.loss) || !std::isfinite(metrics.grad_norm)) {
      if (metrics_) {
        report({ExitCode::diverged,
                concat("step ", step, ": the loss is ", metrics.loss, ", the gradient norm ",
                       metrics.grad_norm, "; the parameters were left as they were before it")},
               {});
      }
      return ExitCode::diverged;
    }
  }
  if (metrics_ && on_gpu) log::info(card_memory_text());
  if (config_.train.deterministic) {
    const uint64_t sum = sum_over(*all, parameter_checksum(trainer.owned(), trainer.compute()));
    if (metrics_) {
      log::info(fmt::format("weft: parameters after {} steps: checksum {:016x}",
                            config_.train.steps, sum));
    }
  }
  return ExitCode::done;
}

void TrainRun::weigh_backward(const World& world) const {
  const auto backward = plan_.kernels.find("attention_backward");
  if (backward == plan_.kernels.end()) return;  // a stage without attention
  try {
    log::info(
        text(measure_backward(config_, world), backward->second.flops, step_flops_ / matmul_rate_));
  } catch (const Error& error) {
    if (error.code() != ExitCode::memory) throw;
    log::info(concat("weft: deterministic: what it costs was not measured: ", error.what()));
  }
}

StepMetrics TrainRun::begin_step(Trainer& trainer, const BatchLoader& loader, int64_t step) const {
  const auto start = Clock::now();
  const double waited_before = trainer.compute().waited_s();
  const int64_t host_waits_before = trainer.host_waits();
  trainer.clear_ledgers();
  const std::vector<Batch> batches = loader.load(step);
  const double data_wait_s = seconds_since(start);
  trainer.enqueue(step, batches, loader.global_labels(step));
  if (config_.train.strict) {
    plan_.memory.check(step, trainer.peaks());
    check_sent_bytes(step, plan_.bytes, trainer.predicted().entries(), trainer.counted().entries());
  }
  return {.step = step,
          .learning_rate = learning_rate(config_.optimizer, step, config_.train.steps),
          .tokens = config_.train.global_batch_size * config_.data.seq_length,
          .ranks = config_.mesh.ranks(),
          .data_wait_s = data_wait_s,
          .exposed_comm_s = trainer.compute().waited_s() - waited_before,
          .host_waits = trainer.host_waits() - host_waits_before,
          .bytes = trainer.counted().by_group(),
          .peak_bytes = trainer.peaks().peak(),
          .predicted_card_bytes = predicted_card_bytes_};
}

void TrainRun::finish_step(Trainer& trainer, StepMetrics& metrics) {
  const int64_t host_waits_before = trainer.host_waits();
  const StepReport report = trainer.report();
  metrics.loss = report.loss;
  metrics.grad_norm = report.grad_norm;
  metrics.step_s = std::chrono::duration<double>(report.finished - last_end_).count();
  last_end_ = report.finished;
  metrics.mfu = step_flops_ / (metrics.step_s * matmul_rate_);
  metrics.host_waits += trainer.host_waits() - host_waits_before;
  metrics.peak_rss_bytes = peak_resident_bytes();
  metrics.card_bytes = predicted_card_bytes_ > 0 ? cuda::bytes_in_use() : 0;
}

std::string TrainRun::card_memory_text() const {
  const auto mib = [](int64_t bytes) { return bytes >> 20; };
  const int64_t used = cuda::bytes_in_use();
  const double off = static_cast<double>(used - predicted_card_bytes_) / static_cast<double>(used);
  return fmt::format(
      "weft: memory of rank 0's GPU: {} MiB in use, {} predicted ({:+.2f} %): arenas {}, kernels' "
      "workspace {}, context and libraries {}, groups of ranks {} as measured before",
      mib(used), mib(predicted_card_bytes_), 100 * off, mib(plan_.memory.peak()),
      mib(cuda::kWorkspaceBytes),
      mib(predicted_card_bytes_ - plan_.memory.peak() - cuda::kWorkspaceBytes - group_bytes_),
      mib(group_bytes_));
}

void TrainRun::describe() const {
  log::info(concat("weft: ", config_.mesh.text(), " (", config_.mesh.ranks(), " ranks), ",
                   parameters_of(config_.model), " parameters in ", name(config_.train.precision),
                   " on ", config_.train.device == DeviceChoice::cuda ? "GPUs" : "the CPU", ", ",
                   config_.train.global_batch_size, " x ", config_.data.seq_length,
                   " tokens a step"));
  log::info(concat("weft: arenas of rank 0: ", plan_.memory.peak() >> 10, " KiB (state ",
                   plan_.memory.state >> 10, ", frames ", plan_.memory.frames() >> 10,
                   plan_.memory.products() > 0
                       ? concat(", waiting products ", plan_.memory.products() >> 10)
                       : "",
                   ", scratch ", plan_.memory.scratch >> 10,
                   "); matrix products: ", matmul_rate_ / 1e9, " GFLOP/s over all ranks"));
  const SequenceStrategies strategies = named_strategies(config_);
  const auto has = [&](std::string_view letters) {
    return config_.model.mixers(letters, config_.model.num_hidden_layers) > 0;
  };
  std::string names;
  if (has("*")) names = concat("attention by ", names_of(strategies.attention));
  if (has("LG")) {
    names += concat(names.empty() ? "" : ", ", "states by ", names_of(strategies.scans));
  }
  if (!names.empty()) log::info(concat("weft: along the sequence axis: ", names));
  if (config_.mesh.along(Axis::pipeline) > 1) {
    const PipelineSchedule schedule = schedule_of(config_);
    log::info(fmt::format(
        "weft: along the pipeline axis: {} over {} stages, {} micro-batches, {:.1f} % of waiting "
        "where all parts take equally long",
        config_.pipeline.schedule, schedule.shape.stages, schedule.shape.micro_batches,
        100 * bubble_share(schedule, {})));
  }
  log::info(concat("weft: writing to ", folder_));
}

}  // namespace weft
