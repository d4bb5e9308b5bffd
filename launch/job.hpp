// How a job of several ranks ends when some of them fail: on all of them, and in one line.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "parallel/comm/backend.hpp"

namespace weft {

/// Runs `f`, which needs no peer, on this rank of a job of processes and tells the others how it
/// went. Where it failed on some the lowest of them prints, and all get its code. Collective.
std::optional<ExitCode> try_together(Backend& all, const std::function<void()>& f);

/// Runs `f`, which may wait for peers, on this process of an MPI job. An error is reported and ends
/// every process of the job, without return: peers that wait for this one would not hear of it.
void or_end_job(const std::function<void()>& f);

/// WEFT_FAULT=throw:RANK:STEP makes that rank fail there: how a job dies can be tried out.
void fail_on_demand(int rank, int64_t step);

}  // namespace weft
