#include "launch/samples.hpp"

#include "data/synthetic.hpp"
#include "src/core/check.hpp"

namespace weft {
namespace {

/// The default mask token has to lie outside the data's vocabulary. One that the config names may
/// lie inside: not every token of a vocabulary need occur.
void check_mask_token(const Config& config, int64_t vocab_size) {
  const int64_t mask = config.mask_token();
  WEFT_REQUIRE(config.data.mask_token >= 0 || vocab_size <= mask, ExitCode::data, config.data.path,
               ": a vocabulary of ", vocab_size,
               " tokens leaves none for the mask: expected model.vocab_size of at least ",
               vocab_size + 1,
               ", or data.mask_token, got model.vocab_size = ", config.model.vocab_size);
  WEFT_REQUIRE(vocab_size > 1 || vocab_size <= mask, ExitCode::data, config.data.path,
               ": expected a token besides the mask token, got a vocabulary of one");
}

/// Synthetic tokens leave the default mask token to the mask.
int64_t synthetic_vocab_size(const Config& config) {
  const bool masked = config.data.objective == Objective::masked;
  return config.model.vocab_size - (masked && config.data.mask_token < 0 ? 1 : 0);
}

}  // namespace

std::unique_ptr<SampleSource> open_samples(const Config& config) {
  const DataConfig& data = config.data;
  if (data.path == "synthetic") {
    return std::make_unique<SyntheticSource>(synthetic_vocab_size(config), data.seq_length,
                                             config.train.seed, data.documents);
  }
  auto source = std::make_unique<TokenFileSource>(data.path, data.seq_length, data.documents);
  WEFT_REQUIRE(source->vocab_size() <= config.model.vocab_size, ExitCode::data, data.path,
               ": a vocabulary of ", source->vocab_size(), " tokens, model.vocab_size is ",
               config.model.vocab_size);
  if (data.objective == Objective::masked) check_mask_token(config, source->vocab_size());
  return source;
}

BatchLoader make_batch_loader(const Config& config, const SampleSource& source,
                              const Coordinate& at) {
  const auto cuts = [&](int64_t total, Axis axis) {
    return Cuts::even(total, config.mesh.along(axis));
  };
  const auto shard = [&](Axis axis) { return at[static_cast<int>(axis)]; };
  std::optional<TokenMasking> masking;
  if (config.data.objective == Objective::masked) {
    masking.emplace(config.train.seed, config.data.mask_fraction, config.mask_token(),
                    source.vocab_size());
  }
  return {source,
          config.train.seed,
          config.train.global_batch_size,
          cuts(config.data.seq_length, Axis::sequence),
          shard(Axis::sequence),
          cuts(config.train.global_batch_size, Axis::data),
          shard(Axis::data),
          config.train.micro_batch_size,
          masking};
}

}  // namespace weft
