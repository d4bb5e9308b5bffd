// The passes of the kinds in segments (in_segments()), but for state_local.
#pragma once

#include "src/kernels/state_mixer.hpp"

namespace weft::cuda::state::segments {

void summarize(const StateSummaryArgs& args, Stream& stream);
void apply(const StateApplyArgs& args, Stream& stream);
void cosummarize(const StateCosummaryArgs& args, Stream& stream);
void backward_local(const StateBackwardLocalArgs& args, Stream& stream);
void backward_apply(const StateBackwardApplyArgs& args, Stream& stream);

}  // namespace weft::cuda::state::segments
