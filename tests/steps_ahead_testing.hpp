// Runs whose host is ahead of the reports it reads, and runs in which a step must not be taken.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "src/kernels/pointwise.hpp"
#include "src/tensor/host_copy.hpp"
#include "tests/parity_testing.hpp"

namespace weft {

/// What all ranks of a run have seen.
struct StepsTaken {
  std::vector<std::vector<double>> reports;  // by rank: loss and norm of every step
  /// By rank, at the end: what it updates, and in bf16 the masters of it.
  std::vector<std::vector<Recording::Entry>> parameters;
};

struct StepsWanted {
  int64_t steps;
  bool ahead = false;  // reports are read a step later, the last ones at the end
  int64_t bad = -1;    // the step in which a NaN enters the gradient of the last rank
};

inline StepsTaken take_steps(const Config& config, const StepsWanted& wanted) {
  const auto source = open_samples(config);
  const int ranks = config.mesh.ranks();
  StepsTaken taken{.reports = std::vector<std::vector<double>>(ranks),
                   .parameters = std::vector<std::vector<Recording::Entry>>(ranks)};
  threads_of(config)([&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    int64_t unread = 0;
    const auto read = [&](int64_t leaving) {
      for (; unread > leaving; --unread) {
        const StepReport report = trainer.report();
        taken.reports[world.rank()].insert(taken.reports[world.rank()].end(),
                                           {report.loss, report.grad_norm});
      }
    };
    for (int64_t step = 0; step < wanted.steps; ++step) {
      trainer.set_probe([&](const Observation& seen) {
        if (step != wanted.bad || world.rank() != ranks - 1 || seen.name != "dembedding") return;
        fill({.y = seen.value, .value = std::numeric_limits<double>::quiet_NaN()},
             trainer.compute());
      });
      trainer.enqueue(step, loader.load(step), loader.global_labels(step));
      ++unread;
      read(wanted.ahead ? Trainer::kStepsInFlight - 1 : 0);
    }
    read(0);
    std::vector<Recording::Entry>& left = taken.parameters[world.rank()];
    left = owned_values(trainer);
    for (const HeldValues& part : trainer.masters()) {
      left.push_back({"master of " + part.parameter->name,
                      values(HostCopy(part.values, trainer.compute()).tensor())});
    }
  });
  return taken;
}

inline void expect_same_parameters(const StepsTaken& a, const StepsTaken& b) {
  ASSERT_EQ(a.parameters.size(), b.parameters.size());
  for (size_t rank = 0; rank < a.parameters.size(); ++rank) {
    ASSERT_EQ(a.parameters[rank].size(), b.parameters[rank].size());
    for (size_t i = 0; i < a.parameters[rank].size(); ++i) {
      const auto& [name, values] = a.parameters[rank][i];
      EXPECT_TRUE(same_bits(values, b.parameters[rank][i].values)) << name << ", rank " << rank;
    }
  }
}

/// A host that is a step ahead gets what one gets that waits for every step.
inline void expect_same_steps_ahead(const Config& config) {
  const StepsTaken waiting = take_steps(config, {.steps = 5});
  const StepsTaken ahead = take_steps(config, {.steps = 5, .ahead = true});
  for (size_t rank = 0; rank < waiting.reports.size(); ++rank) {
    ASSERT_EQ(waiting.reports[rank].size(), 10u);
    EXPECT_TRUE(same_bits(ahead.reports[rank], waiting.reports[rank])) << "rank " << rank;
  }
  expect_same_parameters(ahead, waiting);
}

/// Steps 0 and 1 are taken. Step 2 and those that are enqueued behind it leave what they found.
inline void expect_no_step_from_a_bad_one_on(const Config& config) {
  const StepsTaken sound = take_steps(config, {.steps = 2});
  const StepsTaken further = take_steps(config, {.steps = 5});
  const StepsTaken broken = take_steps(config, {.steps = 5, .ahead = true, .bad = 2});
  for (size_t rank = 0; rank < broken.reports.size(); ++rank) {
    const std::vector<double>& reports = broken.reports[rank];
    ASSERT_EQ(reports.size(), 10u);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(reports[i], sound.reports[rank][i]);
    for (const size_t step : {2, 3, 4}) {
      EXPECT_TRUE(std::isnan(reports[2 * step + 1])) << "rank " << rank << ", step " << step;
      EXPECT_TRUE(std::isfinite(further.reports[rank][2 * step + 1]));
    }
    // The NaN was in a gradient; the loss of what did not change is what it was.
    EXPECT_EQ(reports[4], further.reports[rank][4]);
  }
  expect_same_parameters(broken, sound);
}

}  // namespace weft
