// Initial values and those of files, in bf16: values are rounded, their f32 masters are not. What
// trains in bf16 is on a GPU; what is set before that can be seen on the CPU.
#include "tests/start_values_testing.hpp"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launch/hf_weights.hpp"
#include "tests/golden_run.hpp"

namespace weft {
namespace {

MeshShape mesh_of(int data, int sequence, int tensor) {
  return {.size = {data, 1, sequence, tensor}};
}

const std::vector<MeshShape> kMeshes = {mesh_of(1, 1, 1), mesh_of(2, 1, 1), mesh_of(1, 2, 2)};

/// Masters and values of all ranks, once `set` has set them; every element has one master.
void expect_start_values(const Config& config, const WholeValues& wanted,
                         const std::function<void(Trainer&)>& set) {
  SCOPED_TRACE(config.mesh.text());
  std::atomic<int64_t> masters = 0;
  run_ranks(config.mesh.ranks(), [&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    set(trainer);
    expect_values(trainer.held(), wanted, trainer.compute());
    masters += expect_values(trainer.masters(), wanted, trainer.compute());
  });
  int64_t elements = 0;
  for (const auto& [name, values] : wanted) elements += std::ssize(values);
  EXPECT_EQ(masters, config.train.precision == DType::bf16 ? elements : 0);
}

/// What one rank has in f32.
WholeValues initial_values(Config config) {
  config.train.precision = DType::f32;
  WholeValues whole;
  run_ranks(1, [&](World& world) {
    const Config alone = on_one_rank(config);
    Trainer trainer(alone, world, plan_step(alone, 0).memory);
    for (const HeldValues& part : trainer.held()) {
      const float* values = part.values.as<float>();
      whole[part.parameter->name].assign(values, values + part.values.numel());
    }
  });
  return whole;
}

TEST(StartValues, MastersAreTheInitialValuesOfARunInF32) {
  Config config = parity_config({"model.layer_pattern=L*", "model.linear.family=gla"});
  const WholeValues wanted = initial_values(config);
  for (const int64_t zero : {1, 3}) {
    for (const MeshShape& mesh : kMeshes) {
      config.optimizer.zero = zero;
      config.mesh = mesh;
      for (const DType dtype : {DType::bf16, DType::f32}) {
        config.train.precision = dtype;  // which a file may not ask for on the CPU
        expect_start_values(config, wanted, [](Trainer&) {});
      }
    }
  }
}

/// The file of `folder` with all tensors rounded to bf16, in a folder of its own.
std::string rounded_file(const std::string& folder) {
  const SafetensorsFile file(folder + "/model.safetensors");
  nlohmann::json header;
  std::string data;
  for (const auto& [name, values] : values_of_file(folder)) {
    const size_t begin = data.size();
    for (const float value : values) {
      const uint16_t bits = to_bf16(value);
      data.append(reinterpret_cast<const char*>(&bits), sizeof bits);
    }
    header[name] = {{"dtype", "BF16"},
                    {"shape", file.entry(name).shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  const std::string rounded = testing::TempDir() + "weft_rounded_weights";
  std::filesystem::create_directories(rounded);
  std::ofstream out(rounded + "/model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << text << data;
  return rounded;
}

TEST(StartValues, MastersAreTheFilesOwnNumbers) {
  const std::string golden = golden_folder() + "/llama-gqa";
  const Expected expected(golden);
  for (const std::string& folder : {golden, rounded_file(golden)}) {
    SCOPED_TRACE(folder);
    const WholeValues wanted = values_of_file(folder);
    for (const MeshShape& mesh : kMeshes) {
      for (const DType dtype : {DType::bf16, DType::f32}) {
        const Config config = golden_config(golden, expected, dtype, mesh);
        expect_start_values(config, wanted, [&](Trainer& trainer) {
          load_hf_weights(folder, config.model, trainer.start_values(), trainer.compute());
        });
      }
    }
  }
}

}  // namespace
}  // namespace weft
