// weft scale: training steps at lengths of the sequence, with strategies, on numbers of ranks.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// Adds the subcommand; `action` is set to its body when the command line asks for it.
void add_scale_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
