// Schedules against their definition, step by step.
#include "launch/learning_rate.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace weft {
namespace {

OptimizerConfig config_of(Schedule schedule, int64_t warmup) {
  OptimizerConfig config;
  config.lr = 1.0;
  config.min_lr = 0.1;
  config.warmup_steps = warmup;
  config.schedule = schedule;
  return config;
}

TEST(LearningRateTest, WarmupIsALineFromOneStepOfLr) {
  for (const Schedule schedule : {Schedule::cosine, Schedule::wsd, Schedule::constant}) {
    const OptimizerConfig config = config_of(schedule, 4);
    EXPECT_EQ(learning_rate(config, 0, 100), 0.25);
    EXPECT_EQ(learning_rate(config, 1, 100), 0.5);
    EXPECT_EQ(learning_rate(config, 3, 100), 1.0);
    EXPECT_EQ(learning_rate(config, 4, 100), 1.0);
  }
}

TEST(LearningRateTest, NoWarmupStartsAtLr) {
  for (const Schedule schedule : {Schedule::cosine, Schedule::wsd, Schedule::constant}) {
    EXPECT_EQ(learning_rate(config_of(schedule, 0), 0, 100), 1.0);
  }
}

TEST(LearningRateTest, CosineEndsAtMinLr) {
  const OptimizerConfig config = config_of(Schedule::cosine, 10);
  for (int64_t step = 10; step < 111; ++step) {
    const double angle = std::numbers::pi * static_cast<double>(step - 10) / 100;
    EXPECT_NEAR(learning_rate(config, step, 111), 0.1 + 0.9 * (1 + std::cos(angle)) / 2, 1e-15);
  }
  EXPECT_NEAR(learning_rate(config, 60, 111), 0.55, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(config, 110, 111), 0.1);
}

TEST(LearningRateTest, WsdIsStableThenALine) {
  OptimizerConfig config = config_of(Schedule::wsd, 0);
  config.decay_fraction = 0.2;
  EXPECT_EQ(learning_rate(config, 79, 100), 1.0);
  for (int64_t step = 80; step < 100; ++step) {
    const double expected = 1.0 - 0.9 * static_cast<double>(step - 79) / 20;
    EXPECT_NEAR(learning_rate(config, step, 100), expected, 1e-15) << step;
  }
  EXPECT_DOUBLE_EQ(learning_rate(config, 99, 100), 0.1);
}

TEST(LearningRateTest, WsdDecayDoesNotReachIntoTheWarmup) {
  OptimizerConfig config = config_of(Schedule::wsd, 50);
  config.decay_fraction = 1.0;
  EXPECT_EQ(learning_rate(config, 50, 100), 1.0);
  EXPECT_LT(learning_rate(config, 51, 100), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 99, 100), 0.1);
  config.decay_fraction = 0;
  EXPECT_EQ(learning_rate(config, 99, 100), 1.0);
}

TEST(LearningRateTest, ConstantStays) {
  EXPECT_EQ(learning_rate(config_of(Schedule::constant, 5), 99, 100), 1.0);
}

TEST(LearningRateTest, ShortRunsLearn) {
  for (const Schedule schedule : {Schedule::cosine, Schedule::wsd, Schedule::constant}) {
    EXPECT_EQ(learning_rate(config_of(schedule, 0), 0, 1), 1.0);
    EXPECT_EQ(learning_rate(config_of(schedule, 3), 2, 3), 1.0);
    EXPECT_EQ(learning_rate(config_of(schedule, 2), 2, 3), 1.0);
  }
}

TEST(LearningRateTest, NeverRisesAfterTheWarmupAndStaysInRange) {
  for (const Schedule schedule : {Schedule::cosine, Schedule::wsd, Schedule::constant}) {
    for (int64_t warmup = 0; warmup <= 12; ++warmup) {
      const OptimizerConfig config = config_of(schedule, warmup);
      double before = config.lr;
      for (int64_t step = warmup; step < 15; ++step) {  // past the last step too
        const double lr = learning_rate(config, step, 12);
        EXPECT_LE(lr, before);
        EXPECT_GE(lr, config.min_lr);
        before = lr;
      }
    }
  }
}

}  // namespace
}  // namespace weft
