#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// `weft strategies`: the tables of what sequence.attention and model.layer_pattern may say.
void add_strategies_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
