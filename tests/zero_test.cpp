// The stages of ZeRO: whatever is kept in pieces, a step is that of one rank, and memory and bytes
// are those of closed forms.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <climits>
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <numeric>

#include "tests/flawed_worlds.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

Sets stage(int zero, const Sets& more = {}) {
  return joined({concat("optimizer.zero=", zero)}, more);
}

/// Transfers are delivered late and what nobody wrote is NaN, as long as it lives.
class Strictly {
 public:
  Strictly() : poison_(poison()) {
    set_late_delivery(true);
    set_poison(true);
  }
  ~Strictly() {
    set_late_delivery(false);
    set_poison(poison_);
  }

 private:
  bool poison_;
};

// ---- Values

TEST(Zero, EveryStageIsOneRank) {
  const Strictly strictly;
  for (const int zero : {1, 2, 3}) {
    // One, two and four micro-batches on a rank; a batch that the ranks do not divide.
    expect_parity(stage(zero), {{2, 1}, {2, 2}});
    expect_parity(stage(zero, {"train.micro_batch_size=1"}), {{1, 3}, {2, 1}, {3, 2}, {5, 1}});
  }
}

TEST(Zero, EveryStageIsOneRankInF32) {
  for (const int zero : {2, 3}) {
    expect_parity(stage(zero, {"train.precision=f32", "train.micro_batch_size=1"}), {{2, 2}});
  }
}

TEST(Zero, TiedTablesAndFewLayers) {
  const Strictly strictly;
  for (const int zero : {1, 2, 3}) {
    for (const char* layers : {"1", "2", "3"}) {
      expect_parity(stage(zero, {"model.tie_word_embeddings=true", "train.micro_batch_size=1",
                                 concat("model.num_hidden_layers=", layers)}),
                    {{2, 2}});
    }
  }
}

TEST(Zero, HybridsThatRecompute) {
  const Strictly strictly;
  for (const int zero : {2, 3}) {
    for (const char* policy : {"layer", "attention_output"}) {
      expect_parity(stage(zero, {"model.layer_pattern=LG*W", "model.window=7",
                                 "model.num_hidden_layers=4", "model.linear.family=gla",
                                 "train.micro_batch_size=1", concat("train.recompute=", policy)}),
                    {{2, 2}});
    }
  }
}

TEST(Zero, MoreRanksThanElementsOfAUnit) {
  // The head's norm: 32 weights over 8 ranks of a batch that leaves four of them without a sample.
  expect_parity(stage(3, {"model.hidden_size=8", "model.num_hidden_layers=2"}), {{8, 1}, {4, 2}});
}

TEST(Zero, WithPipelinesAndTheTensorAxis) {
  const Strictly strictly;
  for (const char* tied : {"true", "false"}) {
    const Sets sets = {"train.micro_batch_size=1", "data.seq_length=41", "train.steps=2",
                       concat("model.tie_word_embeddings=", tied)};
    for (const int zero : {1, 2, 3}) {
      expect_mesh_parity(joined(sets, stage(zero)), {{.size = {2, 2, 1, 2}},
                                                     {.size = {1, 2, 2, 1}},
                                                     {.size = {2, 1, 1, 4}},
                                                     {.size = {3, 1, 1, 2}}});
      expect_mesh_parity(joined(sets, stage(zero, {"pipeline.schedule=interleaved"})),
                         {{.size = {2, 2, 1, 1}}});
    }
    for (const char* schedule : {"zb_h1", "zb_v", "gpipe"}) {
      expect_mesh_parity(joined(sets, {concat("pipeline.schedule=", schedule)}),
                         {{.size = {2, 2, 1, 1}}});
    }
  }
}

TEST(Zero, Stage3HasTheBitsOfStage2) {
  const Config config = on_mesh(parity_config({"train.micro_batch_size=1"}), 2, 2);
  Config other = config;
  Config in_pieces = config;
  other.optimizer.zero = 2;
  in_pieces.optimizer.zero = 3;
  const Recording gradients = record(other), values = record(in_pieces);
  EXPECT_TRUE(same_bits(gradients.losses, values.losses));
  for (size_t i = 0; i < values.parameters.back().size(); ++i) {
    EXPECT_TRUE(
        same_bits(gradients.parameters.back()[i].values, values.parameters.back()[i].values));
  }
}

// ---- Mistakes

/// An ordinary stream that forgets one wait for a transfer.
class Forgetful final : public Stream {
 public:
  explicit Forgetful(int64_t forgotten) : forgotten_(forgotten) {}
  Device device() const override { return Device::cpu; }
  void enqueue(std::function<void()> work) override { inner_->enqueue(std::move(work)); }
  Event record() override { return inner_->record(); }
  void wait(const Event& event) override {
    if (event.state() != nullptr && waits_++ == forgotten_) return;
    inner_->wait(event);
  }
  int64_t waits() const { return waits_; }

 private:
  std::unique_ptr<Stream> inner_ = make_inline_stream();
  int64_t forgotten_;
  int64_t waits_ = 0;
};

/// What two steps on two data ranks came to.
struct TwoSteps {
  std::vector<double> reports;  // of rank 1: losses and norms, then what it holds at the end
  std::vector<std::vector<double>> parameters;
  int64_t waits = 0;  // of rank 1 in the first step

  bool same(const TwoSteps& other) const {
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (!same_bits(parameters[i], other.parameters[i])) return false;
    }
    return same_bits(reports, other.reports);
  }
};

Config two_data_ranks(int zero) {
  return on_mesh(parity_config(stage(zero, {"train.steps=2", "train.micro_batch_size=1",
                                            "model.num_hidden_layers=3", "data.seq_length=16"})),
                 2, 1);
}

/// What goes wrong on rank 1: a wait that is left out, a message that is not received; negative for
/// none.
struct Flaw {
  int64_t wait = -1;
  int message = -1;
  bool* lost = nullptr;  // whether there was such a message
};

TwoSteps two_steps(const Config& config, const Flaw& flaw = {}) {
  const auto source = open_samples(config);
  TwoSteps result;
  std::mutex mutex;
  run_ranks(2, [&](World& sound) {
    const bool flawed = sound.rank() == 1;
    LosesAMessage world(sound, flawed && flaw.message >= 0 ? flaw.message : INT_MAX);
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    auto made = std::make_unique<Forgetful>(flawed ? flaw.wait : -1);
    const Forgetful& stream = *made;
    trainer.set_compute(std::move(made));
    for (int64_t step = 0; step < 2; ++step) {
      const StepReport report = trainer.step(step, loader.load(step), loader.global_labels(step));
      if (!flawed) continue;
      result.reports.insert(result.reports.end(), {report.loss, report.grad_norm});
      if (step == 0) result.waits = stream.waits();
    }
    if (flawed && flaw.lost != nullptr) *flaw.lost = world.lost();
    for (const HeldValues& held : trainer.held()) {
      const std::vector<double> part = values(held.values);
      if (flawed) result.reports.insert(result.reports.end(), part.begin(), part.end());
    }
    std::vector<Recording::Entry> owned = owned_values(trainer);
    const std::lock_guard lock(mutex);
    result.parameters.resize(owned.size());
    for (size_t i = 0; i < owned.size(); ++i) {
      std::vector<double>& sum = result.parameters[i];
      sum.resize(owned[i].values.size());
      for (size_t j = 0; j < sum.size(); ++j) sum[j] += owned[i].values[j];
    }
  });
  return result;
}

TEST(ZeroMutant, EveryForgottenWaitIsFound) {
  const Strictly strictly;
  for (const int zero : {1, 2, 3}) {
    const Config config = two_data_ranks(zero);
    const TwoSteps sound = two_steps(config);
    ASSERT_TRUE(std::isfinite(sound.reports[2]));
    EXPECT_TRUE(two_steps(config).same(sound));
    EXPECT_GT(sound.waits, 8);
    for (int64_t wait = 0; wait < sound.waits; ++wait) {
      EXPECT_FALSE(two_steps(config, {.wait = wait}).same(sound))
          << "stage " << zero << ", wait " << wait;
    }
  }
}

TEST(ZeroMutant, EveryLostOrStalePieceIsFound) {
  const Strictly strictly;
  for (const int zero : {2, 3}) {
    const Config config = two_data_ranks(zero);
    const TwoSteps sound = two_steps(config);
    int message = 0;
    for (bool lost = true; lost; ++message) {
      const bool same = two_steps(config, {.message = message, .lost = &lost}).same(sound);
      EXPECT_EQ(same, !lost) << "stage " << zero << ", message " << message;
    }
    EXPECT_GT(message, 40);
  }
}

TEST(Zero, AUnitThatIsNotOpenHasNoWeights) {
  run_ranks(2, [](World& world) {
    const Config config = two_data_ranks(3);
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const Parameter& parameter = *trainer.parameters().parameters()[1];
    for (const bool gradient : {false, true}) {
      try {
        gradient ? trainer.parameters().gradient(parameter) : trainer.parameters().value(parameter);
        ADD_FAILURE() << "not found";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("unit 1 is not open"), std::string::npos)
            << error.what();
      }
    }
  });
}

TEST(Zero, AGradientThatComesTooLateIsAnError) {
  const Config config = two_data_ranks(1);
  const auto source = open_samples(config);
  run_ranks(2, [&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const BatchLoader loader =
        make_batch_loader(config, *source, coordinate_of(config.mesh, world.rank()));
    int seen = 0;
    trainer.set_probe([&](const Observation& observed) {
      // The layer after it is done with the last micro-batch.
      if (observed.name != "layers.1.dmlp" || observed.micro_batch != 1) return;
      ++seen;
      for (const Parameter* p : trainer.parameters().parameters()) {
        const auto ask = [&] { trainer.parameters().gradient(*p); };
        if (p->unit == 3) {
          EXPECT_THROW(ask(), Error) << p->name;
        } else if (p->unit == 2) {
          EXPECT_NO_THROW(ask()) << p->name;
        }
      }
    });
    trainer.step(0, loader.load(0), loader.global_labels(0));
    EXPECT_EQ(seen, 1);
  });
}

/// Calls that rank 0 of two data ranks has made for parameters by when a value is seen.
std::map<std::string, int64_t> calls_when_seen(int zero) {
  const Config config =
      on_mesh(parity_config(stage(zero, {"train.steps=1", "model.num_hidden_layers=5"})), 2, 1);
  std::map<std::string, int64_t> calls;
  RecordingHooks hooks;
  hooks.probe = [&](Trainer& trainer, const Observation& seen) {
    if (trainer.mesh().rank() == 0) calls[seen.name] = trainer.mesh().holders({}).calls();
  };
  record(config, hooks);
  return calls;
}

TEST(Zero, SumsOfStage1StartBesideTheBackward) {
  const auto calls = calls_when_seen(1);
  EXPECT_EQ(calls.at("layers.4.mlp"), 0);
  EXPECT_EQ(calls.at("layers.4.dmlp"), 2);  // the head's matrix, its norm
  EXPECT_EQ(calls.at("layers.3.dmlp"), 3);
  EXPECT_EQ(calls.at("layers.0.dmixer"), 6);
  EXPECT_EQ(calls.at("dembedding"), 7);
}

TEST(Zero, GathersOfStage3RunAsFarAheadAsSlotsAllow) {
  const auto calls = calls_when_seen(3);
  EXPECT_EQ(calls.at("embedding"), 3);  // and two layers, then one ahead of each layer
  EXPECT_EQ(calls.at("layers.0.mixer"), 3);
  EXPECT_EQ(calls.at("layers.1.mixer"), 4);
  EXPECT_EQ(calls.at("layers.3.mixer"), 6);
  EXPECT_EQ(calls.at("layers.4.mixer"), 8);     // the head's norm and its matrix, in another slot
  EXPECT_EQ(calls.at("layers.4.dmlp"), 8 + 3);  // two sums of the head; layer 3 ahead
  EXPECT_EQ(calls.at("layers.3.dmlp"), 8 + 5);  // a sum, layer 2 ahead
  EXPECT_EQ(calls.at("layers.0.dmlp"), 8 + 2 + 4 + 4);  // four sums, four gathers
  EXPECT_EQ(calls.at("dembedding"), 8 + 2 + 5 + 4);     // which needs no values
}

// ---- Memory and bytes

/// Padded elements of every unit: the embedding, layers, the head's norm, its matrix.
std::vector<int64_t> unit_sizes(const Config& config) {
  Model model(config.model, {}, 1);
  std::vector<int64_t> sizes;
  for (const Parameter* p : model.parameters()) {
    sizes.resize(std::max<size_t>(sizes.size(), p->unit + 1));
    sizes[p->unit] += (p->numel() + 15) / 16 * 16;
  }
  return sizes;
}

int64_t sum_of(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
}

/// Elements of the pieces of rank r of P.
int64_t pieces(const std::vector<int64_t>& sizes, int P, int r) {
  int64_t sum = 0;
  for (const int64_t size : sizes) sum += Cuts::even(size, P).size(r);
  return sum;
}

/// Elements of the three slots: one for the first and the last unit, two for those between.
int64_t slots(const std::vector<int64_t>& sizes) {
  int64_t most[3] = {std::max(sizes.front(), sizes.back()), 0, 0};
  for (size_t unit = 1; unit + 1 < sizes.size(); ++unit) {
    int64_t& slot = most[1 + (unit - 1) % 2];
    slot = std::max(slot, sizes[unit]);
  }
  return most[0] + most[1] + most[2];
}

int64_t bytes_named(const StepPlan& plan, const std::string& name) {
  int64_t bytes = 0;
  for (const Arena::Item& item : plan.at_peak) bytes += item.name == name ? item.bytes : 0;
  return bytes;
}

TEST(ZeroMemory, IsThatOfPiecesAndSlots) {
  for (const char* layers : {"7", "8"}) {
    for (const int P : {2, 4}) {
      const Config base = on_mesh(parity_config({"train.precision=f32", concat("model.num_hidden_"
                                                                               "layers=",
                                                                               layers)}),
                                  P / 2, 2);
      const std::vector<int64_t> sizes = unit_sizes(base);
      for (const int zero : {1, 2, 3}) {
        for (int rank = 0; rank < P; ++rank) {
          Config config = base;
          config.optimizer.zero = zero;
          const StepPlan plan = plan_step(config, rank);
          const int64_t all = 4 * sum_of(sizes), own = 4 * pieces(sizes, P, rank);
          const int64_t slot = 4 * slots(sizes);
          const auto near = [&](const char* name, int64_t bytes) {  // up to an arena's alignment
            EXPECT_GE(bytes_named(plan, name), bytes) << name << ", stage " << zero;
            EXPECT_LT(bytes_named(plan, name), bytes + 3 * 64) << name << ", stage " << zero;
          };
          near("parameters", zero < 3 ? all : own);
          near("parameter slots", zero < 3 ? 0 : slot);
          near("gradients", zero < 2 ? all : own);
          near("gradient slots", zero < 2 ? 0 : slot);
          near("adam m", own);
          near("adam v", own);
          near("received gradients",
               4 * Cuts::even(*std::max_element(sizes.begin(), sizes.end()), P).size(rank));
        }
      }
    }
  }
}

/// The table of docs/parallelism.md is what a dry run prints.
TEST(ZeroMemory, IsThatOfTheDocumentation) {
  std::ifstream file(WEFT_SOURCE_DIR "/docs/parallelism.md");
  const std::string docs(std::istreambuf_iterator<char>(file), {});
  for (const int zero : {1, 2, 3}) {
    const StepPlan plan = plan_step(on_mesh(parity_config(stage(zero)), 2, 2), 0);
    std::string row = concat("| ", zero, " |");
    for (const char* name : {"parameters", "parameter slots", "gradients", "gradient slots",
                             "received gradients", "adam m", "adam v"}) {
      row += fmt::format(" {:.1f} |", static_cast<double>(bytes_named(plan, name)) / 1024);
    }
    row += fmt::format(" {:.1f} |", static_cast<double>(plan.memory.state) / 1024);
    EXPECT_NE(docs.find(row), std::string::npos) << row;
  }
}

/// What a rank sends to the other holders in a step, by what for and in which pass.
using Sent = std::map<std::pair<Tag::Purpose, Tag::Pass>, int64_t>;

Sent sent_to_holders(const Config& config, int rank) {
  Sent sent;
  for (const auto& [key, bytes] : plan_step(config, rank).bytes) {
    if (key.group == "replicas" && bytes > 0) sent[{key.tag.purpose, key.tag.pass}] += bytes;
  }
  return sent;
}

TEST(ZeroBytes, AreThoseOfGathersAndSums) {
  const int P = 3, L = 8, m = 2;
  using enum Tag::Purpose;
  using enum Tag::Pass;
  const Config base =
      on_mesh(parity_config({"train.micro_batch_size=1", "train.global_batch_size=6"}), P, 1);
  const std::vector<int64_t> sizes = unit_sizes(base);
  for (int rank = 0; rank < P; ++rank) {
    // A sum sends all but the own piece, a gather the own piece to all others.
    const auto sums = [&](int first, int last) {
      int64_t bytes = 0;
      for (int u = first; u <= last; ++u) {
        bytes += 8 * (sizes[u] - Cuts::even(sizes[u], P).size(rank));
      }
      return bytes;
    };
    const auto gathers = [&](int first, int last) {
      int64_t bytes = 0;
      for (int u = first; u <= last; ++u) {
        bytes += 8 * (P - 1) * Cuts::even(sizes[u], P).size(rank);
      }
      return bytes;
    };
    Config config = base;
    EXPECT_EQ(sent_to_holders(config, rank), (Sent{{{gradient, update}, sums(0, L + 2)},
                                                   {{parameter, update}, gathers(0, L + 2)}}));
    config.optimizer.zero = 2;
    EXPECT_EQ(sent_to_holders(config, rank), (Sent{{{gradient, backward}, m * sums(0, L + 2)},
                                                   {{parameter, update}, gathers(0, L + 2)}}));
    config.optimizer.zero = 3;
    // Backward finds the norm and the last layer where forward left them; the next forward finds
    // the first two layers.
    EXPECT_EQ(sent_to_holders(config, rank),
              (Sent{{{gradient, backward}, m * sums(0, L + 2)},
                    {{parameter, forward}, m * gathers(0, L + 2) - (m - 1) * gathers(1, 2)},
                    {{parameter, backward}, m * gathers(1, L - 1)}}));
  }
}

TEST(ZeroBytes, ATiedTableIsGatheredOnceAndSummedTwice) {
  using enum Tag::Purpose;
  using enum Tag::Pass;
  const auto sent = [](bool tied, Tag::Purpose purpose, Tag::Pass pass) {
    const Config config =
        on_mesh(parity_config({concat("model.tie_word_embeddings=", tied ? "true" : "false"),
                               "train.micro_batch_size=1", "optimizer.zero=3"}),
                2, 1);
    return sent_to_holders(config, 0).at({purpose, pass});
  };
  const int64_t table = 8 * 64 * 32, half = table / 2, m = 2;
  EXPECT_EQ(sent(true, gradient, backward), sent(false, gradient, backward));
  EXPECT_EQ(sent(true, parameter, forward), sent(false, parameter, forward) - (2 * m - 1) * half);
}

}  // namespace
}  // namespace weft
