// How long a pipeline takes: the executor on a simulated machine attains, to the second, what
// timeline() says of its schedule, transfers beside computation included.
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "parallel/comm/simulated.hpp"
#include "parallel/pipeline/executor.hpp"
#include "parallel/pipeline/timeline.hpp"

namespace weft {
namespace {

/// Takes the time of its actions and leaves shapes of one row.
class TimedWork final : public StageWork {
 public:
  TimedWork(const PipelineSchedule& schedule, int stage, const ActionCosts& costs, Stream& compute)
      : schedule_(schedule), stage_(stage), costs_(costs), compute_(compute) {}

  int64_t rows(int) const override { return 1; }
  int64_t width() const override { return 1; }
  int layer(int piece) const override { return piece; }
  Tensor begin(int chunk, int) override {
    return schedule_.piece({stage_, chunk}) == 0 ? Tensor{} : one_row();
  }
  Tensor forward(int chunk, int) override {
    pass(costs_.forward);
    return schedule_.piece({stage_, chunk}) + 1 < schedule_.pieces() ? one_row() : Tensor{};
  }
  void backward(ActionKind kind, int, int, const Tensor&) override { pass(costs_.of(kind)); }
  void backward_weight(int, int) override { pass(costs_.backward_weight); }

 private:
  /// A FLOP is a second.
  void pass(double seconds) { compute_.trace({.name = "work", .cost = {.flops = seconds}}); }
  static Tensor one_row() {
    const int64_t dims[] = {1, 1};
    return Tensor::view(nullptr, DType::f64, Device::meta, dims);
  }

  const PipelineSchedule& schedule_;
  int stage_;
  ActionCosts costs_;
  Stream& compute_;
};

/// When the last stage ends.
double simulated_span(const PipelineSchedule& schedule, const ActionCosts& costs) {
  // Copies take no time. Seconds are sums of powers of two: comparisons are exact.
  const SimulatedMachine machine{.flops_per_s = 1, .message_s = costs.hand_over};
  const MeshShape shape = mesh_along(Axis::pipeline, schedule.shape.stages);
  const auto run_stage = [&](const SimulatedRank& rank) {
    Arena state("state", Device::meta, 0), scratch("scratch", Device::meta, 0);
    ProcessMesh mesh(rank.world, shape, {}, false);
    PipelineChannels channels(rank.world, shape, schedule, {}, false);
    const ParameterStore store({}, DType::f64, state);
    StepContext ctx{.mesh = mesh,
                    .compute = rank.compute,
                    .scratch = scratch,
                    .parameters = store,
                    .dtype = DType::f64,
                    .loss_sum = {}};
    TimedWork work(schedule, channels.stage(), costs, rank.compute);
    PipelineExecutor(schedule, channels).run(work, ctx);
  };
  const std::vector<double> ends =
      simulate(shape.ranks(), machine, SimulatedTime::critical_path, run_stage);
  return *std::max_element(ends.begin(), ends.end());
}

class PipelineExecutorTime : public testing::TestWithParam<PipelineScheduleKind> {};

TEST_P(PipelineExecutorTime, IsThatOfTheSchedule) {
  constexpr ActionCosts kCosts[] = {{1, 1, 1, 0}, {2, 3, 1, 0}, {1, 1, 1, 0.25}, {2, 2, 2, 0.5}};
  int64_t cells = 0;
  for (int stages = 2; stages <= 6; ++stages) {
    for (const int micro_batches : {1, 2, 4, 7, 12}) {
      const PipelineShape shape{stages, micro_batches, GetParam().chunks == 1 ? 1 : 2};
      const PipelineSchedule schedule = pipeline_schedule(GetParam().name, shape);
      for (const ActionCosts& costs : kCosts) {
        EXPECT_EQ(simulated_span(schedule, costs), span(schedule, costs))
            << stages << " stages, " << micro_batches << " micro-batches, hand-over "
            << costs.hand_over << ", f " << costs.forward;
        ++cells;
      }
    }
  }
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

INSTANTIATE_TEST_SUITE_P(Schedules, PipelineExecutorTime, testing::ValuesIn(pipeline_schedules()),
                         [](const auto& tested) { return "of_" + std::string(tested.param.name); });

}  // namespace
}  // namespace weft
