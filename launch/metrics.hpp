// What a run writes about its steps: metrics.jsonl for programs, console lines for people.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <string>

namespace weft {

/// One step as the user sees it.
struct StepMetrics {
  int64_t step = 0;  // from 0
  double loss = 0;   // nats a token
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;  // of the global batch
  int ranks = 1;
  /// From the end of the step before on rank 0's device (from the begin of loading the first) to
  /// this one's: what a step takes of the run, loading and writing included. On a GPU these overlap
  /// with the step.
  double step_s = 0;
  /// FLOPs of the step without recomputation / (step_s x the matmul rate measured at the start)
  double mfu = 0;
  double data_wait_s = 0;
  double exposed_comm_s = 0;             // the host waiting for transfers that nothing hid
  int64_t host_waits = 0;                // of rank 0 for a GPU
  std::map<std::string, int64_t> bytes;  // sent by rank 0, by group
  int64_t peak_bytes = 0;                // of rank 0's arenas
  int64_t peak_rss_bytes = 0;            // of rank 0's process, libraries and all
  int64_t card_bytes = 0;                // in use on rank 0's GPU at the end of the step
  int64_t predicted_card_bytes = 0;      // before the first

  double tokens_per_s() const { return step_s > 0 ? static_cast<double>(tokens) / step_s : 0; }
};

/// Writes both. On a terminal the console line has a progress bar and is redrawn in place;
/// elsewhere it is plain, one line for every `every` steps and the last.
class MetricsWriter {
 public:
  /// Opens `folder`/metrics.jsonl, which must not exist. Throws Error(io).
  MetricsWriter(const std::string& folder, int64_t steps, int64_t every);

  void write(const StepMetrics& metrics);

 private:
  void write_json(const StepMetrics& metrics);
  void write_console(const StepMetrics& metrics);

  std::string path_;
  std::ofstream file_;
  int64_t steps_;
  int64_t every_;
  bool terminal_;
  double total_s_ = 0;
  int64_t done_ = 0;
};

/// Seconds as "42s", "3m05s" or "2h07m".
std::string duration_text(double seconds);

}  // namespace weft
