// Where the cases made by other programs are.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

/// WEFT_GOLDEN_DIR, or tests/golden.
inline std::string golden_folder() {
  const char* folder = std::getenv("WEFT_GOLDEN_DIR");
  return folder ? folder : WEFT_SOURCE_DIR "/tests/golden";
}

/// Names of the folders (or files) there that begin with `prefix`, in order.
inline std::vector<std::string> golden_cases(std::string_view prefix, bool folders) {
  std::vector<std::string> cases;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder())) {
    const std::string name = entry.path().filename();
    if (entry.is_directory() == folders && name.starts_with(prefix)) cases.push_back(name);
  }
  std::sort(cases.begin(), cases.end());
  return cases;
}

}  // namespace weft
