#include "launch/run_folder.hpp"

#include <filesystem>
#include <fstream>
#include <vector>

#include "src/core/check.hpp"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRunFiles[] = {"config.resolved.yaml", "metrics.jsonl", "console.log"};

void move_earlier_run(const fs::path& folder) {
  std::vector<fs::path> present;
  for (const char* name : kRunFiles) {
    if (fs::exists(folder / name)) present.emplace_back(name);
  }
  if (present.empty()) return;
  int number = 1;
  while (fs::exists(folder / concat("earlier-", number))) ++number;
  const fs::path aside = folder / concat("earlier-", number);
  fs::create_directory(aside);
  for (const fs::path& name : present) fs::rename(folder / name, aside / name);
}

}  // namespace

void prepare_run_folder(const std::string& folder, const std::string& resolved_config) {
  try {
    fs::create_directories(folder);
    move_earlier_run(folder);
  } catch (const fs::filesystem_error& error) {
    throw Error(ExitCode::io, concat(folder, ": expected a folder to write a run to, got '",
                                     error.code().message(), "'"));
  }
  const std::string path = folder + "/config.resolved.yaml";
  std::ofstream file(path);
  file << resolved_config;
  file.close();
  WEFT_REQUIRE(file, ExitCode::io, path, ": cannot be written");
}

}  // namespace weft
