#include "launch/scale_steps.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "launch/byte_check.hpp"
#include "launch/placement.hpp"
#include "launch/samples.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {
namespace {

using Clock = Readback::Clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

int64_t along_sequence(const SentBytes& sent) {
  int64_t sum = 0;
  for (const auto& [key, bytes] : sent) {
    if (key.group == name(Axis::sequence)) sum += bytes;
  }
  return sum;
}

/// One rank of the run.
class ScaleRank {
 public:
  ScaleRank(const Config& config, World& world, const SampleSource& source, const StepPlan& plan,
            const StandIns& stand_ins)
      : plan_(plan),
        last_step_(config.train.steps - 1),
        on_gpu_(world.device() == Device::cuda),
        trainer_(config, world, plan.memory, stand_ins),
        all_(world.everyone("scale")),
        loader_(make_batch_loader(config, source, coordinate_of(config.mesh, world.rank()))) {}

  /// Adds the gradients of the next step to `sums`, which all ranks share, before they are clipped.
  void keep_gradients(std::vector<Recording::Entry>& sums) {
    trainer_.set_before_update([this, &sums] {
      // In turn: a sum in the order of the ranks has the same bits in every run.
      for (int turn = 0; turn < all_->size(); ++turn) {
        if (turn == all_->rank()) add_gradients(sums);
        all_->barrier();
      }
    });
  }

  /// The loss of step 0.
  double warm_up() {
    begin(0);
    trainer_.set_before_update({});
    return end(0).loss;
  }

  /// Seconds of each of the next steps.
  std::vector<double> run(int repeats) {
    if (repeats == 0) return {};
    return on_gpu_ ? run_in_flight(repeats) : run_apart(repeats);
  }

  int64_t sequence_bytes() const { return along_sequence(trainer_.counted().entries()); }
  int64_t peak_bytes() const { return trainer_.peaks().peak(); }

 private:
  /// Steps that all ranks begin together.
  std::vector<double> run_apart(int repeats) {
    std::vector<double> seconds;
    for (int64_t number = 1; number <= repeats; ++number) {
      const Clock::time_point start = begin(number);
      seconds.push_back(seconds_between(start, end(number).finished));
    }
    return seconds;
  }

  /// Steps of which a GPU has the next when it ends one. It was idle before the first, whose end is
  /// where time begins.
  std::vector<double> run_in_flight(int repeats) {
    std::vector<double> seconds;
    Clock::time_point last_end;
    for (int64_t number = 1, next = 1; number <= repeats + 1; ++number) {
      for (; next < std::min<int64_t>(number + Trainer::kStepsInFlight, repeats + 2); ++next) {
        begin(next);
      }
      const Clock::time_point finished = end(number).finished;
      if (number > 1) seconds.push_back(seconds_between(last_end, finished));
      last_end = finished;
    }
    return seconds;
  }

  /// Loads the batch of a step, enqueues it and holds what it sends and takes to the plan. Returns
  /// when it was loaded, on the CPU by all ranks.
  Clock::time_point begin(int64_t number) {
    const int64_t step = std::min(number, last_step_);
    const std::vector<Batch> batches = loader_.load(step);
    trainer_.clear_ledgers();
    if (!on_gpu_) all_->barrier();
    const Clock::time_point start = Clock::now();
    trainer_.enqueue(step, batches, loader_.global_labels(step));
    check_sent_bytes(number, plan_.bytes, trainer_.predicted().entries(),
                     trainer_.counted().entries());
    plan_.memory.check(number, trainer_.peaks());
    return start;
  }

  /// Waits for the oldest step that was begun.
  StepReport end(int64_t number) {
    const StepReport report = trainer_.report();
    WEFT_REQUIRE(std::isfinite(report.grad_norm), ExitCode::diverged, "step ", number,
                 ": the gradient norm is not finite");
    return report;
  }

  void add_gradients(std::vector<Recording::Entry>& sums) {
    std::vector<Recording::Entry> mine = owned_gradients(trainer_);
    if (sums.empty()) {
      sums = std::move(mine);
      return;
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      for (size_t j = 0; j < sums[i].values.size(); ++j) sums[i].values[j] += mine[i].values[j];
    }
  }

  const StepPlan& plan_;
  int64_t last_step_;
  bool on_gpu_;
  Trainer trainer_;
  std::unique_ptr<Backend> all_;
  BatchLoader loader_;
};

/// By step the seconds of the slowest rank.
std::vector<double> slowest(const std::vector<std::vector<double>>& by_rank) {
  std::vector<double> most = by_rank.front();
  for (const std::vector<double>& seconds : by_rank) {
    for (size_t step = 0; step < most.size(); ++step) {
      most[step] = std::max(most[step], seconds[step]);
    }
  }
  return most;
}

}  // namespace

int64_t PlannedStep::sequence_bytes() const {
  int64_t sum = 0;
  for (const StepPlan& plan : plans) sum += along_sequence(plan.bytes);
  return sum;
}

int64_t PlannedStep::peak_bytes() const {
  return shared_bytes(plans, static_cast<int>(plans.size()));
}

PlannedStep plan_ranks(Config config) {
  PlannedStep planned;
  planned.choice = place_ranks(config, nullptr);
  if (planned.choice.device == Device::cuda) planned.choice.gpus = cuda::device_count();
  for (int rank = 0; rank < config.mesh.ranks(); ++rank) {
    planned.plans.push_back(plan_step(config, rank));
  }
  planned.config = std::move(config);
  return planned;
}

int64_t shared_bytes(const std::vector<StepPlan>& plans, int cards) {
  std::vector<int64_t> taken(cards);
  for (size_t rank = 0; rank < plans.size(); ++rank) {
    taken[rank % cards] += plans[rank].memory.peak();
  }
  return *std::ranges::max_element(taken);
}

StepTimes time_steps(const PlannedStep& planned, int repeats, bool gradients,
                     const StandIns& stand_ins) {
  cpu::set_blas_threads(1);
  const auto source = open_samples(planned.config);
  const size_t ranks = planned.plans.size();
  StepTimes times;
  std::vector<std::vector<double>> seconds(ranks);  // by rank, by step
  std::vector<int64_t> sent(ranks), peaks(ranks);
  start_threads(planned.choice, [&](World& world) {
    const int p = world.rank();
    ScaleRank rank(planned.config, world, *source, planned.plans[p], stand_ins);
    if (gradients) rank.keep_gradients(times.first.gradients);
    const double loss = rank.warm_up();
    if (p == 0) times.first.loss = loss;
    seconds[p] = rank.run(repeats);
    sent[p] = rank.sequence_bytes();
    peaks[p] = rank.peak_bytes();
  });
  times.seconds = slowest(seconds);
  times.sequence_bytes = std::accumulate(sent.begin(), sent.end(), int64_t{0});
  times.peak_bytes = *std::ranges::max_element(peaks);
  return times;
}

}  // namespace weft
