// Time of pipeline schedules against what a reader draws, and what it says of schedules that cannot
// run.
#include "parallel/pipeline/timeline.hpp"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "src/core/check.hpp"

namespace weft {
namespace {

constexpr ActionKind kForward = ActionKind::forward, kBackward = ActionKind::backward,
                     kInput = ActionKind::backward_input, kWeight = ActionKind::backward_weight;

TEST(PipelineTimeline, IsWhatAReaderDraws) {
  const Timeline times = timeline(pipeline_schedule("1f1b", {2, 2}), {1, 1, 1, 0.5});
  const std::vector<std::vector<std::pair<double, double>>> drawn = {
      {{0, 1}, {1, 2}, {5, 7}, {8, 10}},                  // F0 F1 B0 B1
      {{1.5, 2.5}, {2.5, 4.5}, {4.5, 5.5}, {5.5, 7.5}}};  // F0 B0 F1 B1
  for (size_t stage = 0; stage < 2; ++stage) {
    ASSERT_EQ(times[stage].size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(times[stage][i].begin, drawn[stage][i].first) << stage << ", " << i;
      EXPECT_EQ(times[stage][i].end, drawn[stage][i].second) << stage << ", " << i;
    }
  }
}

/// What is wrong with two stages of one chunk.
std::string fault_of_two(int micro_batches, std::vector<std::vector<PipelineAction>> actions,
                         int slots = kUnlimitedSlots) {
  try {
    timeline({.shape{2, micro_batches}, .actions = std::move(actions)}, {}, slots);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(PipelineTimeline, NamesTheFault) {
  const PipelineAction f0{kForward, 0}, f1{kForward, 1}, b0{kBackward, 0}, b1{kBackward, 1};
  EXPECT_EQ(fault_of_two(2, {{f0, f1, b0, b1}, {f0, b0, f1, b1}}), "");
  EXPECT_EQ(fault_of_two(2, {{f0, f1, b0, b1}, {b0, f0, f1, b1}}),
            "stage 1, backward of micro-batch 0, chunk 0: comes before its forward");
  EXPECT_EQ(
      fault_of_two(2, {{f0, f1, b0, b1}, {f1, f0, b0, b1}}),
      "stage 1, forward of micro-batch 1, chunk 0: what arrives is of micro-batch 0, piece 0");
  EXPECT_EQ(fault_of_two(2, {{f0, b0, f1, b1}, {f0, f1, b0, b1}}),
            "stage 0, backward of micro-batch 0, chunk 0: waits for ever for what it needs");
  EXPECT_EQ(fault_of_two(1, {{f0, {kWeight, 0}, {kInput, 0}}, {f0, b0}}),
            "stage 0, backward_weight of micro-batch 0, chunk 0: comes before its backward_input");
  EXPECT_EQ(fault_of_two(1, {{f0, b0}, {f0, b0, f1}}),
            "stage 1, forward of micro-batch 1, chunk 0: there is no such micro-batch or chunk");
  EXPECT_NE(fault_of_two(2, {{f0, f1, b0}, {f0, b0}})
                .find("nobody takes what piece 0 hands over for micro-batch 1"),
            std::string::npos);
}

TEST(PipelineTimeline, StandsStillWhereAHandOverFindsNoPlace) {
  // Stage 0 of gpipe with stage 1 of 1f1b: with one place, stage 0 cannot hand over its fourth
  // output before stage 1 took the third, and stage 1 not its second gradient.
  const auto all = pipeline_schedule("gpipe", {2, 4}).actions[0];
  const auto alternating = pipeline_schedule("1f1b", {2, 4}).actions[1];
  EXPECT_EQ(fault_of_two(4, {all, alternating}), "");
  EXPECT_EQ(fault_of_two(4, {all, alternating}, 2), "");
  EXPECT_EQ(fault_of_two(4, {all, alternating}, 1),
            "stage 0, forward of micro-batch 3, chunk 0: waits for ever for a place to hand over "
            "to");
}

TEST(PipelineTimeline, GoesOnWhenAPlaceBecomesFree) {
  PipelineSchedule schedule{.shape{2, 3}, .actions{{}, {}}};
  for (int i = 0; i < 3; ++i) schedule.actions[0].push_back({kForward, i});
  for (int i = 0; i < 3; ++i) {
    schedule.actions[1].push_back({kForward, i});
    for (auto& actions : schedule.actions) {
      actions.push_back({kInput, i});
      actions.push_back({kWeight, i});
    }
  }
  // Stage 1 takes output 1 at 4, after its three actions of micro-batch 0; only then can stage 0
  // hand over output 2, which it has at 3, and use the gradient that came at 3.
  EXPECT_EQ(timeline(schedule, {})[0][3].begin, 3);
  EXPECT_EQ(timeline(schedule, {}, 1)[0][3].begin, 4);
  EXPECT_EQ(timeline(schedule, {}, 2)[0][3].begin, 3);
}

}  // namespace
}  // namespace weft
