#include "launch/mesh_option.hpp"

#include <charconv>
#include <set>
#include <sstream>

namespace weft {
namespace {

Axis axis_of(const std::string& word) {
  for (const Axis axis : kAllAxes) {
    if (word == name(axis)) return axis;
  }
  throw Error(ExitCode::config,
              concat("--mesh: expected data, pipeline, sequence or tensor, got '", word, "'"));
}

int size_of_axis(const std::string& axis, const std::string& word) {
  int size = 0;
  const char* end = word.data() + word.size();
  const auto [at, error] = std::from_chars(word.data(), end, size);
  WEFT_REQUIRE(error == std::errc() && at == end && size >= 1 && size <= 65535, ExitCode::config,
               "--mesh: ", axis, ": expected an integer from 1 to 65535, got '", word, "'");
  return size;
}

}  // namespace

void set_mesh(Config& config, const std::string& text) {
  MeshShape shape;
  shape.order = config.mesh.order;
  std::set<Axis> seen;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    WEFT_REQUIRE(equals != std::string::npos, ExitCode::config,
                 "--mesh: expected axis=ranks, got '", part, "'");
    const std::string word = part.substr(0, equals);
    const Axis axis = axis_of(word);
    WEFT_REQUIRE(seen.insert(axis).second, ExitCode::config, "--mesh: ", word, " is given twice");
    shape.along(axis) = size_of_axis(word, part.substr(equals + 1));
  }
  config.mesh = shape;
}

}  // namespace weft
