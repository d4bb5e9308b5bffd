#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// `weft parity CONFIG --mesh ...`: any mesh against one rank.
void add_parity_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
