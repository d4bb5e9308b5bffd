#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// `weft train CONFIG`. Parsing it puts into `action` what main is to run; its result is the exit
/// code.
void add_train_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
