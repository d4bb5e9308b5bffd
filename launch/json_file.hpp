#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace weft {

/// Writes a subcommand's result to the file named by --json; an empty name writes nothing. Throws
/// Error(io).
void write_json(const std::string& path, const nlohmann::ordered_json& result);

}  // namespace weft
