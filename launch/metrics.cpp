#include "launch/metrics.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "src/core/check.hpp"
#include "src/core/log.hpp"

namespace weft {

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

MetricsWriter::MetricsWriter(const std::string& folder, int64_t steps, int64_t every)
    : path_(folder + "/metrics.jsonl"),
      file_(path_),
      steps_(steps),
      every_(every),
      terminal_(isatty(STDERR_FILENO) != 0) {
  WEFT_REQUIRE(file_, ExitCode::io, path_, ": cannot be written");
}

void MetricsWriter::write(const StepMetrics& metrics) {
  total_s_ += metrics.step_s;
  ++done_;
  write_json(metrics);
  write_console(metrics);
}

void MetricsWriter::write_json(const StepMetrics& m) {
  // JSON has no NaN: a loss that is not finite is null.
  const nlohmann::ordered_json line = {{"step", m.step},
                                       {"loss", m.loss},
                                       {"grad_norm", m.grad_norm},
                                       {"lr", m.learning_rate},
                                       {"tokens", m.tokens},
                                       {"tokens_per_s", m.tokens_per_s()},
                                       {"tokens_per_s_per_rank", m.tokens_per_s() / m.ranks},
                                       {"step_s", m.step_s},
                                       {"mfu", m.mfu},
                                       {"data_wait_s", m.data_wait_s},
                                       {"exposed_comm_s", m.exposed_comm_s},
                                       {"host_waits", m.host_waits},
                                       {"bytes", m.bytes},
                                       {"peak_bytes", m.peak_bytes},
                                       {"peak_rss_bytes", m.peak_rss_bytes},
                                       {"card_bytes", m.card_bytes},
                                       {"predicted_card_bytes", m.predicted_card_bytes}};
  file_ << line.dump() << std::endl;  // flushed: a killed run keeps its history
  WEFT_REQUIRE(file_, ExitCode::io, path_, ": cannot be written");
}

void MetricsWriter::write_console(const StepMetrics& m) {
  const bool last = m.step + 1 == steps_;
  const double left_s = total_s_ / static_cast<double>(done_) * (steps_ - m.step - 1);
  const std::string text = fmt::format(
      "step {:>6}/{}  loss {:7.4f}  grad {:8.3e}  lr {:.2e}  {:9.0f} tok/s  mfu "
      "{:4.1f}%  comm {:4.1f}%  eta {}",
      m.step + 1, steps_, m.loss, m.grad_norm, m.learning_rate, m.tokens_per_s(), 100 * m.mfu,
      100 * m.exposed_comm_s / m.step_s, duration_text(left_s));
  if (!terminal_) {
    if (last || m.step % every_ == 0) log::info(text);
    return;
  }
  constexpr int kWidth = 20;
  const int filled = static_cast<int>(kWidth * (m.step + 1) / steps_);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  const std::string line = fmt::format("\r[{}] {}{}", bar, text, last ? "\n" : "");
  fmt::print(stderr, "{}", line);
}

}  // namespace weft
