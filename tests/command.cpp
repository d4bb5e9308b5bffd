#include "tests/command.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/core/check.hpp"

namespace weft {

std::vector<std::string> CommandResult::lines(const std::string& prefix) const {
  std::vector<std::string> found;
  std::istringstream text(out);
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with(prefix)) found.push_back(line);
  }
  return found;
}

CommandResult run_command(const std::string& command) {
  const auto start = std::chrono::steady_clock::now();
  const std::string whole = "cd '" WEFT_SOURCE_DIR "' && " + command + " 2>&1";
  FILE* pipe = popen(whole.c_str(), "r");
  WEFT_CHECK(pipe != nullptr, "popen of ", whole);
  CommandResult result;
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) result.out.append(buffer, n);
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  rusage children{};
  getrusage(RUSAGE_CHILDREN, &children);
  result.peak_bytes = children.ru_maxrss * 1024;
  return result;
}

std::string weft_alone() {
  return "'" WEFT_PROGRAM "'";
}

std::string on_ranks(int ranks, const std::string& program) {
  return concat("OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun -q -n ", ranks,
                " --oversubscribe --bind-to none ", program);
}

std::string weft_on(int ranks) {
  return on_ranks(ranks, weft_alone());
}

std::string fresh_folder() {
  struct Folders {
    std::filesystem::path root =
        std::filesystem::temp_directory_path() / concat("weft-test-", getpid());
    int count = 0;
    ~Folders() {
      std::error_code ignored;
      std::filesystem::remove_all(root, ignored);
    }
  };
  static Folders folders;
  const auto path = folders.root / std::to_string(folders.count++);
  std::filesystem::create_directories(path);
  return path;
}

namespace {

std::vector<double> collect(const std::string& folder,
                            const std::function<nlohmann::json(const nlohmann::json&)>& pick) {
  std::ifstream file(folder + "/metrics.jsonl");
  std::vector<double> found;
  for (std::string line; std::getline(file, line);) {
    found.push_back(pick(nlohmann::json::parse(line)).get<double>());
  }
  return found;
}

}  // namespace

std::vector<double> metric(const std::string& folder, const std::string& key) {
  return collect(folder, [&](const auto& line) { return line.at(key); });
}

std::vector<double> metric(const std::string& folder, const std::string& key,
                           const std::string& member) {
  return collect(folder, [&](const auto& line) { return line.at(key).at(member); });
}

}  // namespace weft
