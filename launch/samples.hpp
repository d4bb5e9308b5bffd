// From a config to samples and to a rank's batches of them.
#pragma once

#include <memory>

#include "data/batch_loader.hpp"
#include "launch/config.hpp"

namespace weft {

/// The samples that data.path names. Throws Error(data) when the file cannot be read, or its
/// vocabulary does not fit the model's, with the mask token of data.objective: masked.
std::unique_ptr<SampleSource> open_samples(const Config& config);

/// The batches of the rank that stands at `at` of the resolved mesh. `source`, which outlives the
/// loader, is what open_samples gives, or stands in for it.
BatchLoader make_batch_loader(const Config& config, const SampleSource& source,
                              const Coordinate& at);

}  // namespace weft
