// State mixers have no CUDA kernels in this version: a model that uses them is refused here. Part
// of every build, with CUDA and without.
#include "src/kernels/state_mixer.hpp"

namespace weft::cuda {
namespace {

[[noreturn]] void refuse(const char* kernel) {
  throw Error(ExitCode::usage, concat(kernel, ": state mixers do not run on CUDA in this version"));
}

}  // namespace

void state_summarize(const StateSummaryArgs&, Stream&) {
  refuse("state_summarize");
}
void state_local(const StateLocalArgs&, Stream&) {
  refuse("state_local");
}
void state_apply(const StateApplyArgs&, Stream&) {
  refuse("state_apply");
}
void state_cosummarize(const StateCosummaryArgs&, Stream&) {
  refuse("state_cosummarize");
}
void state_backward_local(const StateBackwardLocalArgs&, Stream&) {
  refuse("state_backward_local");
}
void state_backward_apply(const StateBackwardApplyArgs&, Stream&) {
  refuse("state_backward_apply");
}

}  // namespace weft::cuda
