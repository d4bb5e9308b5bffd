#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// `weft bench step CONFIG`: how far one rank's training step is from its matrix products;
/// `weft bench sequence CONFIG`: what each attention strategy and state scan costs;
/// `weft bench collectives` and `weft bench kernels`.
void add_bench_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
