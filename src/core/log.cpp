#include "src/core/log.hpp"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "src/core/check.hpp"

namespace weft::log {
namespace {

spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("weft", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made.set_pattern("%v");
    return made;
  }();
  return instance;
}

}  // namespace

void set_up(bool speak) {
  logger().set_level(speak ? spdlog::level::info : spdlog::level::err);
}

void add_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path);
    sink->set_pattern("%Y-%m-%dT%H:%M:%S%z %v");
    logger().sinks().push_back(std::move(sink));
  } catch (const spdlog::spdlog_ex& failure) {
    throw Error(ExitCode::io, concat(path, ": cannot be written (", failure.what(), ")"));
  }
}

void info(const std::string& line) {
  logger().info("{}", line);
}
void warn(const std::string& line) {
  logger().warn("warning: {}", line);
}
void error(const std::string& line) {
  logger().error("{}", line);
}
void flush() {
  logger().flush();
}

}  // namespace weft::log
