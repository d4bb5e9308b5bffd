#include "launch/scale_steps.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "launch/byte_check.hpp"
#include "launch/samples.hpp"
#include "parallel/comm/threads.hpp"
#include "src/kernels/matmul.hpp"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

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

  /// Seconds of a step that all ranks begin together.
  double step(int64_t number, StepReport& report) {
    const int64_t step = std::min(number, last_step_);
    const std::vector<Batch> batches = loader_.load(step);
    trainer_.clear_ledgers();
    all_->barrier();
    const auto start = Clock::now();
    report = trainer_.step(step, batches, loader_.global_labels(step));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    trainer_.set_before_update({});
    check_sent_bytes(number, plan_.bytes, trainer_.predicted().entries(),
                     trainer_.counted().entries());
    plan_.memory.check(number, trainer_.peaks());
    WEFT_REQUIRE(std::isfinite(report.grad_norm), ExitCode::diverged, "step ", number,
                 ": the gradient norm is not finite");
    return seconds;
  }

  int64_t sequence_bytes() const { return along_sequence(trainer_.counted().entries()); }
  int64_t peak_bytes() const { return trainer_.peaks().peak(); }

 private:
  void add_gradients(std::vector<Recording::Entry>& sums) {
    const std::vector<Recording::Entry> mine = owned_gradients(trainer_);
    if (sums.empty()) {
      sums = mine;
      return;
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      for (size_t j = 0; j < sums[i].values.size(); ++j) sums[i].values[j] += mine[i].values[j];
    }
  }

  const StepPlan& plan_;
  int64_t last_step_;
  Trainer trainer_;
  std::unique_ptr<Backend> all_;
  BatchLoader loader_;
};

}  // namespace

std::vector<StepPlan> plan_ranks(const Config& config) {
  std::vector<StepPlan> plans;
  for (int rank = 0; rank < config.mesh.ranks(); ++rank) plans.push_back(plan_step(config, rank));
  return plans;
}

int64_t sequence_bytes(const std::vector<StepPlan>& plans) {
  int64_t sum = 0;
  for (const StepPlan& plan : plans) sum += along_sequence(plan.bytes);
  return sum;
}

StepTimes time_steps(const Config& config, const std::vector<StepPlan>& plans, int repeats,
                     bool gradients, const StandIns& stand_ins) {
  cpu::set_blas_threads(1);
  const auto source = open_samples(config);
  const int ranks = config.mesh.ranks();
  WEFT_CHECK(std::ssize(plans) == ranks, plans.size(), " plans of ", ranks, " ranks");
  StepTimes times;
  std::vector<std::vector<double>> seconds(ranks);  // by rank, by step
  std::vector<int64_t> sent(ranks), peaks(ranks);
  run_ranks(ranks, [&](World& world) {
    const int p = world.rank();
    ScaleRank rank(config, world, *source, plans[p], stand_ins);
    if (gradients) rank.keep_gradients(times.first.gradients);
    StepReport report;
    rank.step(0, report);
    if (p == 0) times.first.loss = report.loss;
    for (int step = 1; step <= repeats; ++step) seconds[p].push_back(rank.step(step, report));
    sent[p] = rank.sequence_bytes();
    peaks[p] = rank.peak_bytes();
  });
  for (int step = 0; step < repeats; ++step) {
    double slowest = 0;
    for (int p = 0; p < ranks; ++p) slowest = std::max(slowest, seconds[p][step]);
    times.seconds.push_back(slowest);
  }
  for (const int64_t bytes : sent) times.sequence_bytes += bytes;
  times.peak_bytes = *std::ranges::max_element(peaks);
  return times;
}

}  // namespace weft
