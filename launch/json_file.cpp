#include "launch/json_file.hpp"

#include <fstream>

#include "src/core/check.hpp"

namespace weft {

void write_json(const std::string& path, const nlohmann::ordered_json& result) {
  if (path.empty()) return;
  std::ofstream out(path);
  out << result.dump(2) << '\n';
  out.close();
  WEFT_REQUIRE(out, ExitCode::io, path, ": cannot be written");
}

}  // namespace weft
