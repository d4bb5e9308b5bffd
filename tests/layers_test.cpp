// The folders are layers: a file includes from its own layer or from those below it, written from
// the root.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>

namespace weft {
namespace {

namespace fs = std::filesystem;

/// What each layer may include besides itself.
const std::map<std::string, std::set<std::string>> kBelow = {
    {"src/core", {}},
    {"src/tensor", {"src/core"}},
    {"src/kernels", {"src/core", "src/tensor"}},
    {"parallel", {"src/core", "src/tensor", "src/kernels"}},
    {"models", {"src/core", "src/tensor", "src/kernels", "parallel"}},
    {"data", {"src/core", "src/tensor"}},
    {"launch", {"src/core", "src/tensor", "src/kernels", "parallel", "models", "data"}},
    {"tests", {"src/core", "src/tensor", "src/kernels", "parallel", "models", "data", "launch"}}};

/// "src/core" of "src/core/check.hpp", "models" of "models/mlp.hpp"; empty outside the layers.
std::string layer_of(const std::string& path) {
  for (const auto& [layer, below] : kBelow) {
    if (path.starts_with(layer + "/")) return layer;
  }
  return "";
}

struct Include {
  std::string file;
  std::string target;
};

std::vector<Include> project_includes() {
  const fs::path root = WEFT_SOURCE_DIR;
  const std::regex quoted("^\\s*#include \"([^\"]+)\"");
  std::vector<Include> found;
  for (const auto& [layer, below] : kBelow) {
    for (const auto& entry : fs::recursive_directory_iterator(root / layer)) {
      const std::string extension = entry.path().extension();
      if (extension != ".hpp" && extension != ".cpp" && extension != ".cu") continue;
      const std::string file = fs::relative(entry.path(), root);
      std::ifstream text(entry.path());
      std::smatch match;
      for (std::string line; std::getline(text, line);) {
        if (std::regex_search(line, match, quoted)) found.push_back({file, match[1]});
      }
    }
  }
  return found;
}

TEST(Layers, IncludeOnlyDownwards) {
  const std::vector<Include> includes = project_includes();
  EXPECT_GT(includes.size(), 100u);
  for (const auto& [file, target] : includes) {
    const std::string from = layer_of(file), to = layer_of(target);
    EXPECT_NE(to, "") << file << " includes \"" << target
                      << "\", which is not written from the root";
    EXPECT_TRUE(from == to || kBelow.at(from).contains(to)) << file << " includes " << target;
    EXPECT_TRUE(fs::exists(fs::path(WEFT_SOURCE_DIR) / target)) << file << " includes " << target;
  }
}

TEST(Layers, NoFileIsLongerThanItsReader) {
  for (const auto& [layer, below] : kBelow) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(WEFT_SOURCE_DIR) / layer)) {
      const std::string extension = entry.path().extension();
      if (extension != ".hpp" && extension != ".cpp" && extension != ".cu") continue;
      std::ifstream text(entry.path());
      int64_t lines = 0;
      for (std::string line; std::getline(text, line);) ++lines;
      EXPECT_LE(lines, 500) << entry.path();
    }
  }
}

}  // namespace
}  // namespace weft
