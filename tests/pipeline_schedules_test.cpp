// Pipeline schedules by enumeration: every micro-batch once through every chunk, no deadlock, and
// the closed forms of frames, time and bubbles; mistakes in a schedule are found; the diagrams and
// the table of docs/parallelism.md are what the schedules do.
#include "parallel/pipeline/schedules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "parallel/pipeline/timeline.hpp"
#include "src/core/check.hpp"

namespace weft {

static void PrintTo(const PipelineScheduleKind& kind, std::ostream* out) {
  *out << kind.name;
}

namespace {

constexpr int kStages = 16, kMicroBatches = 64;

/// Integers, so that sums of times are exact.
constexpr ActionCosts kCosts[] = {{2, 3, 1}, {3, 2, 2}, {1, 4, 2}, {5, 1, 3},
                                  {2, 2, 7}, {1, 7, 7}, {4, 9, 0}};

/// Equal ones (a backward as long as two forwards), and others that change from shape to shape.
std::array<ActionCosts, 2> costs_for(const PipelineShape& shape) {
  return {ActionCosts{}, kCosts[(shape.stages + shape.micro_batches) % std::size(kCosts)]};
}

double whole(const ActionCosts& costs) {
  return costs.forward + costs.backward_input + costs.backward_weight;
}

std::string name_of(const char* kind, const PipelineShape& shape) {
  return concat(kind, ", ", shape.stages, " stages, ", shape.micro_batches, " micro-batches, ",
                shape.chunks, " chunks");
}

using Check = std::function<void(const PipelineShape&, const PipelineSchedule&)>;

/// Every number of stages and micro-batches, for every legal one of 1, 2 and 4 chunks.
void for_all(const PipelineScheduleKind& kind, const Check& check) {
  for (const int chunks : {1, 2, 4}) {
    if (kind.chunks != 0 && kind.chunks != chunks) continue;
    for (int stages = 1; stages <= kStages; ++stages) {
      for (int micro_batches = 1; micro_batches <= kMicroBatches; ++micro_batches) {
        const PipelineShape shape{stages, micro_batches, chunks};
        check(shape, pipeline_schedule(kind.name, shape));
        ASSERT_FALSE(testing::Test::HasFailure()) << name_of(kind.name, shape);
      }
    }
  }
}

void for_all(const char* name, const Check& check) {
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    if (kind.name == std::string(name)) return for_all(kind, check);
  }
  FAIL() << name;
}

// ---- What makes a schedule right

/// Counts and order of one stage, without a look at the others; empty when nothing is wrong.
std::string fault_of_stage(const PipelineSchedule& schedule, int stage) {
  const PipelineShape& shape = schedule.shape;
  for (int chunk = 0; chunk < shape.chunks; ++chunk) {
    // Of every kind, where the micro-batches come; the next one expected.
    std::vector<std::vector<int>> at(4);
    const auto& actions = schedule.actions[stage];
    for (int i = 0; i < std::ssize(actions); ++i) {
      if (actions[i].chunk != chunk) continue;
      std::vector<int>& places = at[static_cast<int>(actions[i].kind)];
      if (actions[i].micro_batch != std::ssize(places)) {
        return concat("stage ", stage, ", ", text(actions[i]), ": out of turn");
      }
      places.push_back(i);
    }
    const auto& [forward, backward, input, weight] = std::tie(at[0], at[1], at[2], at[3]);
    const auto& last = backward.empty() ? weight : backward;
    const auto& first = backward.empty() ? input : backward;
    const size_t count = shape.micro_batches;
    if (forward.size() != count || first.size() != count || last.size() != count ||
        (!backward.empty() && input.size() + weight.size() != 0)) {
      return concat("stage ", stage, ", chunk ", chunk, ": actions are missing");
    }
    for (size_t i = 0; i < count; ++i) {
      if (forward[i] >= first[i] || first[i] > last[i]) {
        return concat("stage ", stage, ", chunk ", chunk, ", micro-batch ", i, ": order");
      }
    }
  }
  return "";
}

/// What is wrong with a schedule; empty when nothing is.
std::string fault_of(const PipelineSchedule& schedule) {
  if (std::ssize(schedule.actions) != schedule.shape.stages) return "stages";
  for (int stage = 0; stage < schedule.shape.stages; ++stage) {
    if (const std::string fault = fault_of_stage(schedule, stage); !fault.empty()) return fault;
  }
  try {
    timeline(schedule, {});
    timeline(schedule, {}, /*slots=*/1);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class PipelineScheduleOf : public testing::TestWithParam<PipelineScheduleKind> {};

TEST_P(PipelineScheduleOf, TakesEveryMicroBatchOnceThroughEveryChunkAndNeverBlocks) {
  for_all(GetParam(), [](const PipelineShape&, const PipelineSchedule& schedule) {
    EXPECT_EQ(fault_of(schedule), "");
  });
}

TEST_P(PipelineScheduleOf, IsNoSlowerWithOnePlaceForAHandOver) {
  for_all(GetParam(), [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    for (const ActionCosts& costs : costs_for(shape)) {
      EXPECT_EQ(span(timeline(schedule, costs, 1)), span(schedule, costs));
      if (schedule.placement == PipelinePlacement::zigzag) break;  // made for equal costs
    }
  });
}

TEST_P(PipelineScheduleOf, HandsOverBetweenNeighbours) {
  for_all(GetParam(), [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    for (int i = 0; i < schedule.pieces(); ++i) {
      const PipelinePlace place = schedule.place(i);
      EXPECT_EQ(schedule.piece(place), i);
      for (const ActionKind kind : {ActionKind::forward, ActionKind::backward_input}) {
        const PipelineAction action{kind, 0, place.chunk};
        const auto target = schedule.target(place.stage, action);
        const bool last = kind == ActionKind::forward ? i + 1 == schedule.pieces() : i == 0;
        ASSERT_EQ(target.has_value(), !last);
        if (last) continue;
        EXPECT_EQ(schedule.source(target->stage, {kind, 0, target->chunk}), place);
        if (schedule.placement == PipelinePlacement::zigzag) {
          EXPECT_LE(std::abs(target->stage - place.stage), 1);
        } else {
          const int step = kind == ActionKind::forward ? 1 : shape.stages - 1;
          EXPECT_EQ(target->stage, (place.stage + step) % shape.stages);
        }
      }
    }
    const bool is_v = schedule.placement == PipelinePlacement::zigzag;
    EXPECT_EQ(schedule.place(0).stage, 0);
    EXPECT_EQ(schedule.place(schedule.pieces() - 1).stage, is_v ? 0 : shape.stages - 1);
  });
}

INSTANTIATE_TEST_SUITE_P(All, PipelineScheduleOf, testing::ValuesIn(pipeline_schedules()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// ---- Frames

TEST(PipelineFrames, OfGPipeAreAllMicroBatches) {
  for_all("gpipe", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    for (const int peak : peak_frames(schedule)) EXPECT_EQ(peak, shape.micro_batches);
  });
}

TEST(PipelineFrames, OfOneForwardOneBackwardAreTheStagesToCome) {
  for_all("1f1b", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const std::vector<int> peaks = peak_frames(schedule);
    for (int stage = 0; stage < shape.stages; ++stage) {
      EXPECT_EQ(peaks[stage], std::min(shape.stages - stage, shape.micro_batches));
    }
  });
}

TEST(PipelineFrames, OfInterleavedAreItsFillAndOne) {
  for_all("interleaved", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const auto [p, m, v] = shape;
    const std::vector<int> peaks = peak_frames(schedule);
    for (int stage = 0; stage < p; ++stage) {
      const int full = 2 * (p - 1 - stage) + (v - 1) * p + 1;
      // Of the forwards that fill whole groups of p, those of micro-batches that are there.
      int there = 0;
      for (int k = 0; k < full; ++k) there += k / (v * p) * p + k % p < m ? 1 : 0;
      EXPECT_EQ(peaks[stage], there);
      if (m % p == 0) {
        EXPECT_EQ(peaks[stage], std::min(v * m, full));
      }
    }
  });
}

TEST(PipelineFrames, OfZeroBubbleAreThoseOfTheFirstStageEverywhere) {
  for_all("zb_h1", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    for (const int peak : peak_frames(schedule)) {
      EXPECT_EQ(peak, std::min(shape.stages, shape.micro_batches));
    }
  });
  for_all("zb_v", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const auto [p, m, v] = shape;
    const std::vector<int> peaks = peak_frames(schedule);
    for (int stage = 0; stage < p; ++stage) {
      EXPECT_EQ(peaks[stage], std::min({2 * p, 2 * m, m + stage + 1}));
    }
  });
}

// ---- Time

TEST(PipelineSpan, OfGPipeAndOneForwardOneBackwardHasTheKnownBubble) {
  for (const char* name : {"gpipe", "1f1b"}) {
    for_all(name, [](const PipelineShape& shape, const PipelineSchedule& schedule) {
      const double p = shape.stages, m = shape.micro_batches;
      for (const ActionCosts& costs : costs_for(shape)) {
        EXPECT_EQ(span(schedule, costs), (m + p - 1) * whole(costs));
        EXPECT_NEAR(bubble_share(schedule, costs), (p - 1) / (m + p - 1), 1e-12);
      }
    });
  }
}

TEST(PipelineSpan, OfInterleavedHasABubbleShorterByItsChunks) {
  for_all("interleaved", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const double p = shape.stages, m = shape.micro_batches, v = shape.chunks;
    const int missing = (shape.stages - shape.micro_batches % shape.stages) % shape.stages;
    for (const ActionCosts& costs : costs_for(shape)) {
      const double time = span(schedule, costs), full = (v * m + p - 1) * whole(costs);
      if (missing == 0) {
        EXPECT_EQ(time, full);
        EXPECT_NEAR(bubble_share(schedule, costs), (p - 1) / (v * m + p - 1), 1e-12);
      } else if (m < p) {
        EXPECT_EQ(time, full + missing * (v - 1) * whole(costs));
      } else {
        EXPECT_GE(time, full);
        EXPECT_LE(time, full + missing * (v - 1) * whole(costs));
      }
    }
  });
}

TEST(PipelineSpan, OfZbH1HidesGradientsOfWeights) {
  for_all("zb_h1", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const double p = shape.stages, m = shape.micro_batches;
    for (const ActionCosts& costs : costs_for(shape)) {
      const auto [f, b, w, hand_over] = costs;
      const double bubble = span(schedule, costs) - m * whole(costs);
      EXPECT_EQ(bubble, (p - 1) * (f + b) - (std::min(p, m) - 1) * std::min({f, b, w}));
      if (m >= p && w <= std::min(f, b)) {
        EXPECT_EQ(bubble, (p - 1) * (f + b - w));
      }
    }
  });
}

TEST(PipelineSpan, OfZbVHasNoHolesWhenPartsTakeEqualTime) {
  for_all("zb_v", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const int p = shape.stages, m = shape.micro_batches;
    const Timeline times = timeline(schedule, {});
    EXPECT_EQ(span(times), 6 * m + std::max(p - 1, 4 * (p - 1) - 2 * (m - 1)));
    for (int stage = 0; m >= 2 * p - 1 && stage < p; ++stage) {
      EXPECT_EQ(times[stage].front().begin, stage);
      EXPECT_EQ(times[stage].back().end, stage + 6 * m);
    }
  });
}

TEST(PipelineSpan, OfZeroBubbleIsShorterThanOneForwardOneBackward) {
  for (const char* name : {"zb_h1", "zb_v"}) {
    for_all(name, [](const PipelineShape& shape, const PipelineSchedule& schedule) {
      const PipelineSchedule other =
          pipeline_schedule("1f1b", {shape.stages, shape.micro_batches, 1});
      if (shape.stages == 1) {
        EXPECT_NEAR(bubble_share(schedule, {}), 0, 1e-12);
      } else {
        EXPECT_LT(bubble_share(schedule, {}), bubble_share(other, {}) - 1e-9);
      }
    });
  }
}

TEST(PipelineSpan, CountsHandOversBetweenStages) {
  // All outputs of gpipe travel in one wave and all gradients in another.
  for_all("gpipe", [](const PipelineShape& shape, const PipelineSchedule& schedule) {
    const double p = shape.stages, m = shape.micro_batches;
    EXPECT_EQ(span(schedule, {2, 3, 1, 5}), (m + p - 1) * 6 + 2 * (p - 1) * 5);
  });
  // One micro-batch goes through all pieces and back, stages taking turns.
  for (const auto& [name, chunks] : {std::pair{"1f1b", 1}, {"interleaved", 4}}) {
    for (int stages = 2; stages <= kStages; ++stages) {
      const int pieces = stages * chunks;
      EXPECT_EQ(span(pipeline_schedule(name, {stages, 1, chunks}), {2, 3, 1, 5}),
                pieces * 6 + 2 * (pieces - 1) * 5);
    }
  }
  // With one stage, and where a zigzag turns, nothing travels.
  EXPECT_EQ(span(pipeline_schedule("interleaved", {1, 3, 4}), {2, 3, 1, 5}), 3 * 4 * 6);
  EXPECT_EQ(span(pipeline_schedule("zb_v", {1, 3, 2}), {2, 3, 1, 5}), 3 * 2 * 6);
}

// ---- Mistakes

class PipelineMutant : public PipelineScheduleOf {
 protected:
  PipelineMutant() {
    const int chunks = GetParam().chunks == 0 ? 2 : GetParam().chunks;
    schedule_ = pipeline_schedule(GetParam().name, {4, 8, chunks});
  }

  void for_all_actions(const std::function<void(size_t stage, size_t i)>& check) const {
    for (size_t stage = 0; stage < schedule_.actions.size(); ++stage) {
      for (size_t i = 0; i < schedule_.actions[stage].size(); ++i) check(stage, i);
    }
  }

  PipelineSchedule schedule_;
};

TEST_P(PipelineMutant, WithAnActionLessOrOneTwiceIsFound) {
  for_all_actions([&](size_t stage, size_t i) {
    PipelineSchedule mutant = schedule_;
    auto& actions = mutant.actions[stage];
    const PipelineAction action = actions[i];
    actions.erase(actions.begin() + i);
    EXPECT_NE(fault_of(mutant), "") << "without " << text(action);
    actions.insert(actions.begin() + i, 2, action);
    EXPECT_NE(fault_of(mutant), "") << "twice " << text(action);
    actions.erase(actions.begin() + i);
    EXPECT_EQ(fault_of(mutant), "");
  });
}

/// Whether `later` has to stay behind `earlier` whatever the other stages do.
bool is_bound(const PipelineAction& earlier, const PipelineAction& later) {
  return earlier.chunk == later.chunk &&
         (earlier.kind == later.kind || earlier.micro_batch == later.micro_batch);
}

TEST_P(PipelineMutant, WithTwoActionsSwappedIsFound) {
  const double time = span(schedule_, {});
  const std::vector<int> peaks = peak_frames(schedule_);
  const std::string name = GetParam().name;
  int found = 0;
  for_all_actions([&](size_t stage, size_t i) {
    for (size_t j = i + 1; j < schedule_.actions[stage].size(); ++j) {
      PipelineSchedule mutant = schedule_;
      auto& actions = mutant.actions[stage];
      bool bound = false;
      for (size_t k = i; k <= j; ++k) {
        bound = bound || (k > i && is_bound(actions[i], actions[k])) ||
                (k < j && is_bound(actions[k], actions[j]));
      }
      std::swap(actions[i], actions[j]);
      const std::string what =
          concat("stage ", stage, ", ", text(actions[j]), " swapped with ", text(actions[i]));
      if (!fault_of(mutant).empty()) {
        ++found;
        continue;
      }
      // It runs, and is another schedule. Where gradients of weights do not fill holes and stages
      // have one chunk, every such schedule is longer or has other frames.
      EXPECT_FALSE(bound) << what;
      if (name == "gpipe" || name == "1f1b") {
        EXPECT_TRUE(span(mutant, {}) > time || peak_frames(mutant) != peaks) << what;
      }
    }
  });
  EXPECT_GT(found, 400);
}

INSTANTIATE_TEST_SUITE_P(All, PipelineMutant, testing::ValuesIn(pipeline_schedules()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// ---- Input

std::string error_of(const char* name, const PipelineShape& shape) {
  try {
    pipeline_schedule(name, shape);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "";
}

TEST(PipelineSchedules, RefuseWhatTheyDoNotHave) {
  EXPECT_EQ(error_of("2f2b", {4, 8}),
            "pipeline schedule: expected one of gpipe, 1f1b, interleaved, zb_h1, zb_v, got '2f2b'");
  EXPECT_EQ(error_of("1f1b", {4, 8, 2}),
            "pipeline schedule 1f1b: expected 1 chunk of the model a stage, got 2");
  EXPECT_EQ(error_of("zb_v", {4, 8, 1}),
            "pipeline schedule zb_v: expected 2 chunks of the model a stage, got 1");
  EXPECT_EQ(error_of("interleaved", {4, 8, 0}),
            "pipeline schedule interleaved: expected at least 1 chunk of the model a stage, got 0");
  EXPECT_EQ(error_of("gpipe", {0, 8}),
            "pipeline schedule gpipe: expected at least 1 stage and 1 micro-batch, got 0 and 8");
  EXPECT_EQ(error_of("gpipe", {4, 0}),
            "pipeline schedule gpipe: expected at least 1 stage and 1 micro-batch, got 4 and 0");
}

// ---- Documentation

/// A line a stage, two characters a unit of time: the letter of the action, small on the second
/// chunk, and the micro-batch; dots while the stage waits.
std::string diagram(const PipelineSchedule& schedule) {
  const Timeline times = timeline(schedule, {});
  std::string lines;
  for (int stage = 0; stage < schedule.shape.stages; ++stage) {
    std::string line(2 * static_cast<size_t>(span(times)), '.');
    for (size_t i = 0; i < times[stage].size(); ++i) {
      const PipelineAction& action = schedule.actions[stage][i];
      const char* letters = action.chunk == 0 ? "FBBW" : "fbbw";
      const auto begin = static_cast<size_t>(2 * times[stage][i].begin);
      const auto end = static_cast<size_t>(2 * times[stage][i].end);
      line[begin] = letters[static_cast<int>(action.kind)];
      line[begin + 1] = static_cast<char>('0' + action.micro_batch);
      std::fill(line.begin() + begin + 2, line.begin() + end, '-');
    }
    lines += concat("    stage ", stage, "  ", line, "\n");
  }
  return lines;
}

/// Frames and times in those of a whole stage.
std::string table_row(const char* name, const PipelineSchedule& schedule) {
  const double chunks = schedule.shape.chunks;
  std::ostringstream row;
  row << "| `" << name << "` | " << schedule.shape.chunks << " |";
  for (const int peak : peak_frames(schedule)) row << ' ' << peak / chunks;
  row << " | " << span(schedule, {}) / chunks << " | ";
  row.setf(std::ios::fixed);
  row.precision(1);
  row << 100 * bubble_share(schedule, {}) << " % |\n";
  return row.str();
}

TEST(PipelineSchedules, AreDocumentedAsTheyAre) {
  std::ifstream file(WEFT_SOURCE_DIR "/docs/parallelism.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  for (const PipelineScheduleKind& kind : pipeline_schedules()) {
    const int chunks = kind.chunks == 0 ? 2 : kind.chunks;
    const PipelineSchedule schedule = pipeline_schedule(kind.name, {4, 8, chunks});
    const std::string row = table_row(kind.name, schedule), drawn = diagram(schedule);
    EXPECT_NE(page.find(row), std::string::npos) << row;
    EXPECT_NE(page.find(drawn), std::string::npos) << kind.name << "\n" << drawn;
  }
}

}  // namespace
}  // namespace weft
