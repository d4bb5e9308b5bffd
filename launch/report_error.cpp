#include "launch/report_error.hpp"

#include <unistd.h>

#include <cstdio>
#include <new>

#include "src/core/log.hpp"

namespace weft {

Whereabouts& whereabouts() {
  thread_local Whereabouts here;
  return here;
}

Failure describe(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return {e.code(), e.where().empty() ? e.what() : concat(e.what(), " (", e.where(), ")")};
  } catch (const std::bad_alloc&) {
    return {ExitCode::memory, "out of host memory"};
  } catch (const std::exception& e) {
    return {ExitCode::internal, e.what()};
  } catch (...) {
    return {ExitCode::internal, "an unknown exception"};
  }
}

void report(const Failure& failure, const Whereabouts& where) {
  std::string place;
  if (where.rank >= 0) {
    char host[256] = "?";
    gethostname(host, sizeof host - 1);
    place = concat("rank ", where.rank, " on host ", host,
                   where.step >= 0 ? concat(", step ", where.step) : "", ": ");
  }
  std::fflush(stdout);  // a line of its own also where both go to one file
  log::error(concat("weft: ", place, failure.message));
  log::flush();
}

}  // namespace weft
