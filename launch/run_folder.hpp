#pragma once

#include <string>

namespace weft {

/// Makes `folder` ready for a run: creates it, moves the files of an earlier run there into
/// "earlier-<n>" so that nothing is written over, and writes config.resolved.yaml. Throws
/// Error(io).
void prepare_run_folder(const std::string& folder, const std::string& resolved_config);

}  // namespace weft
