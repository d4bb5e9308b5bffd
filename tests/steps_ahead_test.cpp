// The order of steps and their reports, and of what a step that is not finite leaves, on the CPU.
#include "tests/steps_ahead_testing.hpp"

namespace weft {
namespace {

Config small(const Sets& sets = {}) {
  return parity_config(joined({"data.seq_length=16", "train.global_batch_size=2",
                               "model.num_hidden_layers=2", "train.steps=5"},
                              sets));
}

TEST(StepsAhead, GetWhatTheHostGetsThatWaits) {
  expect_same_steps_ahead(small());
  expect_same_steps_ahead(on_mesh(small({"optimizer.zero=3"}), 2, 2));
}

TEST(StepsAhead, NoneIsTakenFromABadOneOn) {
  for (const char* optimizer : {"adamw", "muon"}) {
    SCOPED_TRACE(optimizer);
    const Sets sets = {concat("optimizer.name=", optimizer)};
    expect_no_step_from_a_bad_one_on(small(sets));
    expect_no_step_from_a_bad_one_on(on_mesh(small(sets), 1, 2));
    expect_no_step_from_a_bad_one_on(on_mesh(small(joined(sets, {"optimizer.zero=3"})), 2, 1));
  }
}

TEST(StepsAhead, ReportsAreReadOnceAndInTime) {
  const Config config = small();
  const auto source = open_samples(config);
  threads_of(config)([&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    const auto enqueue = [&](int64_t step) {
      trainer.enqueue(step, loader.load(step), loader.global_labels(step));
    };
    EXPECT_THROW(trainer.report(), Error) << "of no step";
    enqueue(0);
    EXPECT_THROW(trainer.step(1, loader.load(1), loader.global_labels(1)), Error)
        << "its report would be step 0's";
    enqueue(1);
    EXPECT_THROW(enqueue(2), Error) << "more steps than slots";
  });
}

}  // namespace
}  // namespace weft
