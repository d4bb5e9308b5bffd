// weft bench sequence
#pragma once

#include <functional>

namespace CLI {
class App;
}

namespace weft {

/// Adds `sequence` to the subcommand `bench`; parsing it sets `action`.
void add_sequence_bench_command(CLI::App& bench, std::function<int()>& action);

}  // namespace weft
