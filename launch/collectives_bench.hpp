// `weft bench collectives`: seconds and bandwidth of every collective by size.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// Adds `collectives` to the subcommands of `weft bench`.
void add_collectives_bench(CLI::App& bench, std::function<int()>& action);

}  // namespace weft
