// Runs commands as a user would, and reads what they leave.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

struct CommandResult {
  int code = 0;
  std::string out;  // stdout and stderr, as they came
  double seconds = 0;
  int64_t peak_bytes = 0;  // resident, of the largest process that any command so far has started

  /// The lines that start with `prefix`.
  std::vector<std::string> lines(const std::string& prefix = "") const;
};

/// Through the shell, from the repository's root.
CommandResult run_command(const std::string& command);

/// "mpirun -n P ... program".
std::string on_ranks(int ranks, const std::string& program);
/// The same of weft, ready for arguments.
std::string weft_on(int ranks);
std::string weft_alone();

/// A new empty folder, removed at the end of the process.
std::string fresh_folder();

/// The values of `key` in the run folder's metrics.jsonl.
std::vector<double> metric(const std::string& folder, const std::string& key);
/// The same of an object's member: metric(folder, "bytes", "sequence").
std::vector<double> metric(const std::string& folder, const std::string& key,
                           const std::string& member);

}  // namespace weft
