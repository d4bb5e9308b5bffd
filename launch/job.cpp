#include "launch/job.hpp"

#include <cstdlib>
#include <vector>

#include "launch/report_error.hpp"
#include "parallel/comm/mpi.hpp"

namespace weft {
namespace {

/// What all ranks do when some of them failed: the lowest of those prints, all leave with its code.
std::optional<ExitCode> agree(Backend& all, const std::optional<Failure>& mine) {
  std::vector<int32_t> codes(all.size());
  codes[all.rank()] = mine ? static_cast<int32_t>(mine->code) : 0;
  const int64_t dims[] = {all.size()};
  all.all_gather(Tensor::view(codes.data(), DType::i32, Device::cpu, dims),
                 Cuts::even(all.size(), all.size()));
  for (int p = 0; p < all.size(); ++p) {
    if (codes[p] == 0) continue;
    if (p == all.rank()) report(*mine, whereabouts());
    return static_cast<ExitCode>(codes[p]);
  }
  return std::nullopt;
}

}  // namespace

std::optional<ExitCode> try_together(Backend& all, const std::function<void()>& f) {
  std::optional<Failure> failure;
  try {
    f();
  } catch (...) {
    failure = describe(std::current_exception());
  }
  return agree(all, failure);
}

void or_end_job(const std::function<void()>& f) {
  try {
    f();
  } catch (...) {
    const Failure failure = describe(std::current_exception());
    report(failure, whereabouts());
    MpiSession::abort(static_cast<int>(failure.code));
  }
}

void fail_on_demand(int rank, int64_t step) {
  const char* fault = std::getenv("WEFT_FAULT");
  WEFT_REQUIRE(!fault || concat("throw:", rank, ":", step) != fault, ExitCode::internal,
               "failure asked for by WEFT_FAULT");
}

}  // namespace weft
