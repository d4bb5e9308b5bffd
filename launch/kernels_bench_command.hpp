// `weft bench kernels`: time, share of the floor and error of every kernel.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// Adds `kernels` to the subcommands of `weft bench`.
void add_kernels_bench(CLI::App& bench, std::function<int()>& action);

}  // namespace weft
