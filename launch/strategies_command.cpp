#include "launch/strategies_command.hpp"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "launch/json_file.hpp"
#include "models/mixers.hpp"
#include "models/state_family.hpp"
#include "parallel/sequence/strategies.hpp"

namespace weft {
namespace {

int print_tables(const std::string& json_path) {
  nlohmann::json json;
  std::printf("attention strategies (sequence.attention)\n");
  for (const AttentionStrategy& strategy : attention_strategies()) {
    std::printf("  %-10s %s\n", strategy.name, strategy.summary);
    json["attention"].push_back({{"name", strategy.name}, {"summary", strategy.summary}});
  }
  std::printf("state scans (sequence.state)\n");
  for (const StateScanKind& scan : state_scans()) {
    std::printf("  %-10s %s\n", scan.name, scan.summary);
    json["state"].push_back({{"name", scan.name}, {"summary", scan.summary}});
  }
  std::printf("mixers (letters of model.layer_pattern)\n");
  for (const MixerKind& kind : mixer_kinds()) {
    std::printf("  %-10c %s\n", kind.letter, kind.summary);
    json["mixers"].push_back({{"letter", std::string(1, kind.letter)}, {"summary", kind.summary}});
  }
  std::printf("families of linear attention (model.linear.family)\n");
  for (const StateFamily* family : linear_families()) {
    std::printf("  %-10s %s\n", family->name, family->summary);
    json["linear"].push_back({{"name", family->name}, {"summary", family->summary}});
  }
  if (!json_path.empty()) write_json(json_path, json);
  return static_cast<int>(ExitCode::done);
}

}  // namespace

void add_strategies_command(CLI::App& app, std::function<int()>& action) {
  CLI::App* command =
      app.add_subcommand("strategies", "list attention strategies, state scans and token mixers");
  auto json_path = std::make_shared<std::string>();
  command->add_option("--json", *json_path, "write the tables to FILE")->type_name("FILE");
  command->callback(
      [&action, json_path] { action = [json_path] { return print_tables(*json_path); }; });
}

}  // namespace weft
