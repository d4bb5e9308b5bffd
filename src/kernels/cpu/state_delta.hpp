// The delta kind's passes, which src/kernels/cpu/state_mixer.cpp dispatches to.
#pragma once

#include "src/kernels/state_mixer.hpp"

namespace weft::cpu::delta {

void summarize(const StateSummaryArgs& args);
void apply(const StateApplyArgs& args);
void cosummarize(const StateCosummaryArgs& args);
void backward_local(const StateBackwardLocalArgs& args);
void backward_apply(const StateBackwardApplyArgs& args);
int64_t scratch_bytes(DType dtype, int64_t key_dim, int64_t value_dim);

}  // namespace weft::cpu::delta
