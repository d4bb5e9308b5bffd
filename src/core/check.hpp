// Errors: one exception type that knows where it was thrown and which exit code it deserves.
//
//   WEFT_CHECK(tokens > 0, "seq_length is ", tokens);        an invariant of ours (exit 1)
//   WEFT_REQUIRE(ok, ExitCode::data, path, ": not HDF5");    somebody else's input (its own code)
//   WEFT_CALL(MPI_Comm_rank(comm, &rank));                   a C call that returns 0 on success
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace weft {

/// What the process leaves with; scripts rely on the numbers.
enum class ExitCode : int {
  done = 0,
  internal = 1,
  usage = 2,
  comparison = 3,  // parity, verify or strict found a difference
  config = 64,     // config, mesh or strategy
  data = 65,       // data or checkpoint
  diverged = 70,
  memory = 71,
  io = 74,
  retry = 75,
  requeue = 85,
  mismatch = 86,  // ranks entered different collectives
  hang = 87,      // a peer was lost or a wait passed its deadline
};

class Error : public std::runtime_error {
 public:
  /// `where` is "file:line" for our own invariants and empty for errors of the user's input, whose
  /// message already names the user's file.
  Error(ExitCode code, const std::string& message, std::string where = {})
      : std::runtime_error(message), code_(code), where_(std::move(where)) {}

  ExitCode code() const { return code_; }
  const std::string& where() const { return where_; }

 private:
  ExitCode code_;
  std::string where_;
};

/// All arguments written one after the other: the message of every check.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  return text.str();
}

namespace detail {
/// Throws an internal Error at file:line, the path cut to what follows the repository root.
[[noreturn]] void throw_internal(const char* file, int line, const std::string& message);
}  // namespace detail

/// What WEFT_CALL prints of a status that is not 0; libraries that have names for theirs
/// specialise it.
template <class Status>
std::string status_text(const Status& status) {
  return concat(status);
}

}  // namespace weft

#define WEFT_CHECK(condition, ...)                                                   \
  do {                                                                               \
    if (!(condition)) [[unlikely]]                                                   \
      ::weft::detail::throw_internal(                                                \
          __FILE__, __LINE__,                                                        \
          ::weft::concat(#condition, " is false" __VA_OPT__(, ": ", ) __VA_ARGS__)); \
  } while (0)

#define WEFT_REQUIRE(condition, exit_code, ...)                    \
  do {                                                             \
    if (!(condition)) [[unlikely]]                                 \
      throw ::weft::Error(exit_code, ::weft::concat(__VA_ARGS__)); \
  } while (0)

#define WEFT_CALL(call)                                                                     \
  do {                                                                                      \
    if (const auto weft_status = (call); weft_status != 0) [[unlikely]]                     \
      ::weft::detail::throw_internal(                                                       \
          __FILE__, __LINE__,                                                               \
          ::weft::concat(#call, " returned ", ::weft::status_text(weft_status)));           \
  } while (0)
