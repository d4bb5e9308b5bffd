// weft: one program, a subcommand for everything it does.
#include <CLI/CLI.hpp>
#include <functional>

#include "launch/bench_command.hpp"
#include "launch/data_command.hpp"
#include "launch/parity_command.hpp"
#include "launch/report_error.hpp"
#include "launch/scale_command.hpp"
#include "launch/strategies_command.hpp"
#include "launch/train_command.hpp"
#include "parallel/comm/mpi.hpp"
#include "src/core/log.hpp"

int main(int argc, char** argv) {
  CLI::App app(
      "weft: training of very long sequences on a mesh of data, pipeline, sequence and "
      "tensor parallel ranks");
  app.require_subcommand(1);
  app.set_version_flag("--version", "weft " WEFT_VERSION);
  std::function<int()> action;
  weft::add_train_command(app, action);
  weft::add_data_command(app, action);
  weft::add_parity_command(app, action);
  weft::add_bench_command(app, action);
  weft::add_scale_command(app, action);
  weft::add_strategies_command(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    if (weft::launched_rank() == 0) weft::report({weft::ExitCode::usage, error.what()}, {});
    return static_cast<int>(weft::ExitCode::usage);
  }
  weft::log::set_up(true);
  try {
    return action();
  } catch (...) {
    const weft::Failure failure = weft::describe(std::current_exception());
    weft::report(failure, {});
    return static_cast<int>(failure.code);
  }
}
