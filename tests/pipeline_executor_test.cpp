// The executor of pipelines on exact integers: every schedule gives what the pieces give one after
// the other, over transfers that arrive late; what crosses is what is booked and counted; slots are
// as many as the lists need.
#include "parallel/pipeline/executor.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <set>

#include "parallel/comm/recording.hpp"
#include "parallel/comm/threads.hpp"
#include "parallel/pipeline/slots.hpp"
#include "parallel/pipeline/timeline.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/flawed_worlds.hpp"

namespace weft {
namespace {

constexpr int64_t kWidth = 3;

/// A micro-batch has its own number of rows; some have none.
int64_t rows_of(int micro_batch) {
  return (micro_batch * 3 + 2) % 5;
}

/// An element of the model's input.
double input_at(int micro_batch, int64_t i) {
  return micro_batch * 16 + static_cast<double>(i) + 1;
}

// Piece k maps x to 2 x + k + 1, and d to 2 d + x + 3 k: bits stay exact through all pieces, and a
// wrong micro-batch, piece or order shows. The last piece's gradient of its output is the output.
double forward_of(int piece, double x) {
  return 2 * x + piece + 1;
}
double backward_of(int piece, double x, double d) {
  return 2 * d + x + 3 * piece;
}

using Rows = std::vector<double>;

/// What the pieces compute one after the other.
struct Expected {
  std::vector<Rows> inputs;     // [piece]
  std::vector<Rows> gradients;  // [piece]: of its output
  Rows last;                    // the gradient of the model's input
};

Expected expected(int pieces, int micro_batch) {
  Expected all;
  Rows x(rows_of(micro_batch) * kWidth);
  for (size_t i = 0; i < x.size(); ++i) x[i] = input_at(micro_batch, static_cast<int64_t>(i));
  for (int piece = 0; piece < pieces; ++piece) {
    all.inputs.push_back(x);
    for (double& value : x) value = forward_of(piece, value);
  }
  Rows d = x;
  all.gradients.resize(pieces);
  for (int piece = pieces - 1; piece >= 0; --piece) {
    all.gradients[piece] = d;
    for (size_t i = 0; i < d.size(); ++i) d[i] = backward_of(piece, all.inputs[piece][i], d[i]);
  }
  all.last = d;
  return all;
}

/// Checks everything that passes through a stage. Its frames are poisoned when they end.
class CheckedWork final : public StageWork {
 public:
  CheckedWork(const PipelineSchedule& schedule, int stage) : schedule_(schedule), stage_(stage) {}

  int64_t rows(int micro_batch) const override { return rows_of(micro_batch); }
  int64_t width() const override { return kWidth; }
  int layer(int piece) const override { return 10 * piece; }

  Tensor begin(int chunk, int micro_batch) override {
    Frame& frame = frames_[{chunk, micro_batch}];
    frame.input = zeros(DType::f64, {rows(micro_batch), kWidth});
    frame.output = zeros(DType::f64, {rows(micro_batch), kWidth});
    poison_fill(frame.input);
    poison_fill(frame.output);
    if (piece(chunk) > 0) return frame.input;
    for (int64_t i = 0; i < frame.input.view().numel(); ++i) {
      frame.input.view().as<double>()[i] = input_at(micro_batch, i);
    }
    return {};
  }

  Tensor forward(int chunk, int micro_batch) override {
    const Expected all = expected(schedule_.pieces(), micro_batch);
    const Frame& frame = frames_.at({chunk, micro_batch});
    const int k = piece(chunk);
    check(frame.input, all.inputs[k], "input", chunk, micro_batch);
    const double* x = frame.input.view().as<double>();
    double* y = frame.output.view().as<double>();
    for (int64_t i = 0; i < frame.input.view().numel(); ++i) y[i] = forward_of(k, x[i]);
    ++forwards;
    return k + 1 < schedule_.pieces() ? frame.output.view() : Tensor{};
  }

  void backward(ActionKind kind, int chunk, int micro_batch, const Tensor& d) override {
    const Expected all = expected(schedule_.pieces(), micro_batch);
    const Frame& frame = frames_.at({chunk, micro_batch});
    const int k = piece(chunk);
    if (k + 1 == schedule_.pieces()) cpu::copy({.y = d, .x = frame.output});
    check(d, all.gradients[k], "gradient", chunk, micro_batch);
    const double* x = frame.input.view().as<double>();
    for (int64_t i = 0; i < d.numel(); ++i) {
      d.as<double>()[i] = backward_of(k, x[i], d.as<double>()[i]);
    }
    if (k == 0) check(d, all.last, "gradient of the model's input", chunk, micro_batch);
    poison_fill(frame.input);
    poison_fill(frame.output);
    if (kind == ActionKind::backward) backward_weight(chunk, micro_batch);
  }

  void backward_weight(int chunk, int micro_batch) override {
    weights[chunk].push_back(micro_batch);
  }

  std::vector<std::string> mistakes;
  int forwards = 0;
  std::map<int, std::vector<int>> weights;  // by chunk: micro-batches in the order of their sums

 private:
  struct Frame {
    Owned input, output;
  };

  int piece(int chunk) const { return schedule_.piece({stage_, chunk}); }
  void check(const Tensor& got, const Rows& wanted, const char* what, int chunk, int micro_batch) {
    if (values(got) == wanted) return;
    mistakes.push_back(concat("stage ", stage_, ", chunk ", chunk, ", micro-batch ", micro_batch,
                              ": not the ", what));
  }

  const PipelineSchedule& schedule_;
  int stage_;
  std::map<std::pair<int, int>, Frame> frames_;
};

/// One step of `work` on a rank, with as much scratch as a run on the meta device takes.
void run_stage(World& world, const MeshShape& mesh_shape, const PipelineSchedule& schedule,
               StageWork& work, Ledgers ledgers, int64_t scratch_bytes, int64_t* peak = nullptr) {
  const auto stream = world.make_compute_stream();
  Arena state("state", world.device(), 4096);
  Arena scratch("scratch", world.device(), scratch_bytes);
  ProcessMesh mesh(world, mesh_shape, {}, false);
  PipelineChannels channels(world, mesh_shape, schedule, ledgers, /*strict=*/true);
  ParameterStore store({}, DType::f64, state);
  StepContext ctx{.mesh = mesh,
                  .compute = *stream,
                  .scratch = scratch,
                  .parameters = store,
                  .dtype = DType::f64,
                  .loss_sum = state.allocate("loss", DType::f64, {1})};
  PipelineExecutor(schedule, channels).run(work, ctx);
  EXPECT_EQ(scratch.used(), 0);
  if (peak) *peak = scratch.peak();
}

/// A stage of which only the shapes matter.
class Shapes final : public StageWork {
 public:
  Shapes(const PipelineSchedule& schedule, int stage) : schedule_(schedule), stage_(stage) {}
  int64_t rows(int micro_batch) const override { return rows_of(micro_batch); }
  int64_t width() const override { return kWidth; }
  int layer(int piece) const override { return 10 * piece; }
  Tensor begin(int chunk, int micro_batch) override {
    return schedule_.piece({stage_, chunk}) == 0 ? Tensor{} : shape(micro_batch);
  }
  Tensor forward(int chunk, int micro_batch) override {
    return schedule_.piece({stage_, chunk}) + 1 < schedule_.pieces() ? shape(micro_batch)
                                                                     : Tensor{};
  }
  void backward(ActionKind, int, int, const Tensor&) override {}
  void backward_weight(int, int) override {}

 private:
  static Tensor shape(int micro_batch) {
    const int64_t dims[] = {rows_of(micro_batch), kWidth};
    return Tensor::view(nullptr, DType::f64, Device::meta, dims);
  }

  const PipelineSchedule& schedule_;
  int stage_;
};

/// The sums of a chunk's weights come in ascending order.
std::vector<int> ascending(int count) {
  std::vector<int> numbers(count);
  for (int i = 0; i < count; ++i) numbers[i] = i;
  return numbers;
}

/// Runs the schedule on threads; `beside` ranks of another axis do the same next to each stage.
void expect_exact(const PipelineSchedule& schedule, int beside = 1) {
  MeshShape mesh = mesh_along(Axis::pipeline, schedule.shape.stages);
  mesh.along(Axis::sequence) = beside;
  run_ranks(mesh.ranks(), [&](World& world) {
    const int stage = coordinate_of(mesh, world.rank())[static_cast<int>(Axis::pipeline)];
    Ledger planned, predicted, counted;
    int64_t scratch = 0;
    {
      const auto recorded = make_recording_world(world.rank(), world.size());
      Shapes shapes(schedule, stage);
      run_stage(*recorded, mesh, schedule, shapes, {&planned, nullptr}, 0, &scratch);
    }
    CheckedWork work(schedule, stage);
    int64_t peak = 0;
    run_stage(world, mesh, schedule, work, {&predicted, &counted}, scratch, &peak);
    EXPECT_EQ(work.mistakes, std::vector<std::string>{});
    EXPECT_EQ(peak, scratch);
    EXPECT_EQ(work.forwards, schedule.shape.chunks * schedule.shape.micro_batches);
    for (const auto& [chunk, order] : work.weights) {
      EXPECT_EQ(order, ascending(schedule.shape.micro_batches)) << "chunk " << chunk;
    }
    EXPECT_EQ(predicted.entries(), planned.entries());
    EXPECT_EQ(counted.entries(), planned.entries());
    // A message a micro-batch and direction for every piece with a neighbour on another stage.
    std::map<Ledger::Key, int64_t> sent;
    for (const PipelineAction& action : schedule.actions[stage]) {
      const auto target = schedule.target(stage, action);
      if (!target || target->stage == stage) continue;
      const bool forward = action.kind == ActionKind::forward;
      const int piece = schedule.piece({stage, action.chunk});
      const Tag tag{10 * (forward ? piece + 1 : piece), Tag::Purpose::activation,
                    forward ? Tag::Pass::forward : Tag::Pass::backward, action.micro_batch};
      sent[{"pipeline", tag}] = rows_of(action.micro_batch) * kWidth * 8;
    }
    EXPECT_GT(sent.size() + (schedule.shape.stages == 1 ? 1 : 0), 0U);
    for (const auto& [key, bytes] : counted.entries()) {
      const auto found = sent.find(key);
      EXPECT_EQ(bytes, found == sent.end() ? 0 : found->second) << text(key.tag);
    }
    for (const auto& [key, bytes] : sent) {
      EXPECT_TRUE(counted.entries().contains(key)) << text(key.tag);
    }
  });
}

class PipelineExecutorRun : public testing::TestWithParam<PipelineScheduleKind> {};

TEST_P(PipelineExecutorRun, IsThePiecesOneAfterTheOther) {
  set_late_delivery(true);
  int64_t cells = 0;
  for (int stages = 1; stages <= 8; ++stages) {
    for (int micro_batches = 1; micro_batches <= 9; ++micro_batches) {
      for (const int chunks : {1, 2, 3}) {
        if (GetParam().chunks != 0 && GetParam().chunks != chunks) continue;
        expect_exact(pipeline_schedule(GetParam().name, {stages, micro_batches, chunks}));
        ++cells;
        if (HasFailure()) {
          FAIL() << stages << " stages, " << micro_batches << " micro-batches, " << chunks
                 << " chunks";
        }
      }
    }
  }
  set_late_delivery(false);
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

TEST_P(PipelineExecutorRun, KeepsToItsOwnRanksOfTheOtherAxes) {
  const int chunks = std::max(GetParam().chunks, GetParam().chunks == 0 ? 2 : 1);
  for (const int stages : {2, 3}) {
    expect_exact(pipeline_schedule(GetParam().name, {stages, 4, chunks}), /*beside=*/3);
  }
}

/// Runs three stages, one of which loses the message that it receives after `others`: whether there
/// is one, and whether some stage has seen that it is missing.
std::pair<bool, bool> lose(const PipelineSchedule& schedule, int victim, int others) {
  std::atomic<bool> lost = false, seen = false;
  run_ranks(3, [&](World& world) {
    LosesAMessage lossy(world, world.rank() == victim ? others : INT32_MAX);
    CheckedWork work(schedule, world.rank());
    run_stage(lossy, mesh_along(Axis::pipeline, 3), schedule, work, {}, 1 << 16);
    if (!work.mistakes.empty()) seen = true;
    if (world.rank() == victim) lost = lossy.lost();
  });
  return {lost, seen};
}

TEST_P(PipelineExecutorRun, MissesAMessageThatIsLost) {
  const auto schedule = pipeline_schedule(
      GetParam().name, {.stages = 3, .micro_batches = 3, .chunks = GetParam().chunks == 1 ? 1 : 2});
  for (int victim = 0; victim < 3; ++victim) {
    int messages = 0;
    for (bool any = true; any; ++messages) {
      const auto [lost, seen] = lose(schedule, victim, messages);
      EXPECT_EQ(lost, seen) << "stage " << victim << ", message " << messages;
      any = lost;
    }
    EXPECT_GT(messages, 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Schedules, PipelineExecutorRun,
                         testing::ValuesIn(pipeline_schedules().begin(),
                                           pipeline_schedules().end()),
                         [](const auto& row) { return "of_" + std::string(row.param.name); });

// ---- Slots

/// Frames and waiting products of a schedule against a count of what is alive after every action.
TEST(PipelineSlots, AreAsManyAsLiveAtOnceAndNoneIsTakenTwice) {
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    for (int stages = 1; stages <= 8; ++stages) {
      for (int micro_batches = 1; micro_batches <= 20; ++micro_batches) {
        for (const int chunks : {1, 2, 3}) {
          if (kind.chunks != 0 && kind.chunks != chunks) continue;
          const auto schedule = pipeline_schedule(kind.name, {stages, micro_batches, chunks});
          for (int stage = 0; stage < stages; ++stage) {
            const SlotPlan frames = frame_slots(schedule, stage);
            const SlotPlan weights = weight_slots(schedule, stage);
            std::set<int> frames_busy, weights_busy;
            size_t most_frames = 0, most_weights = 0;
            for (const auto& [action, micro_batch, chunk] : schedule.actions[stage]) {
              const int frame = frames.taken[chunk][micro_batch];
              const int weight = weights.taken[chunk][micro_batch];
              switch (action) {
                case ActionKind::forward:
                  EXPECT_TRUE(frames_busy.insert(frame).second);
                  break;
                case ActionKind::backward_input:
                  EXPECT_TRUE(weights_busy.insert(weight).second);
                  [[fallthrough]];
                case ActionKind::backward:
                  most_frames = std::max(most_frames, frames_busy.size());
                  most_weights = std::max(most_weights, weights_busy.size());
                  frames_busy.erase(frame);
                  EXPECT_EQ(weight >= 0, action == ActionKind::backward_input);
                  break;
                case ActionKind::backward_weight:
                  weights_busy.erase(weight);
                  break;
              }
              ASSERT_FALSE(HasFailure()) << kind.name << ", stage " << stage << " of " << stages;
            }
            EXPECT_EQ(frames.count, most_frames);
            EXPECT_EQ(weights.count, most_weights);
            EXPECT_LE(frames.count, peak_frames(schedule)[stage]);
            EXPECT_TRUE(frames_busy.empty() && weights_busy.empty());
          }
        }
      }
    }
  }
}

TEST(PipelineSlots, OfZeroBubblesAreOneMoreThanStages) {
  for (int stages = 1; stages <= 8; ++stages) {
    const auto schedule = pipeline_schedule("zb_h1", {stages, 2 * stages});
    for (int stage = 0; stage < stages; ++stage) {
      EXPECT_EQ(frame_slots(schedule, stage).count, stages - stage);  // as 1f1b
      EXPECT_EQ(weight_slots(schedule, stage).count, stage + 1);
    }
  }
}

}  // namespace
}  // namespace weft
