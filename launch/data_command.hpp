// weft data: makes token files and looks into them.
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// Adds `data prepare` and `data inspect`. Parsing one of them puts into `action` what main is to
/// run; its result is the exit code, failures are thrown.
void add_data_command(CLI::App& app, std::function<int()>& action);

}  // namespace weft
