// The samples that a config names: vocabularies that do not fit the model, with and without a mask.
#include "launch/samples.hpp"

#include <gtest/gtest.h>

#include "tests/data_testing.hpp"

namespace weft {
namespace {

Config config_of(const std::string& path, int64_t vocab_size, int64_t mask_token) {
  Config config;
  config.model.vocab_size = vocab_size;
  config.model.causal = false;
  config.data.path = path;
  config.data.seq_length = 4;
  config.data.objective = Objective::masked;
  config.data.mask_token = mask_token;
  return config;
}

TEST(Samples, TheMaskTokenNeedsRoomUnlessItIsChosen) {
  const ScratchFolder folder;
  const std::string bytes = folder / "bytes.h5", ones = folder / "ones.h5";
  write_tokens(bytes, random_documents(256, {20}));
  write_tokens(ones, {{0, 0, 0, 0, 0, 0}}, 1);
  EXPECT_EQ(open_samples(config_of(bytes, 257, -1))->vocab_size(), 256);
  EXPECT_EQ(open_samples(config_of(bytes, 256, 0))->vocab_size(), 256);
  EXPECT_EQ(open_samples(config_of(ones, 2, -1))->vocab_size(), 1);
  expect_error(ExitCode::data,
               {bytes, "a vocabulary of 256 tokens leaves none for the mask",
                "model.vocab_size of at least 257, or data.mask_token", "model.vocab_size = 256"},
               [&] { open_samples(config_of(bytes, 256, -1)); });
  expect_error(ExitCode::data, {bytes, "a vocabulary of 256 tokens, model.vocab_size is 255"},
               [&] { open_samples(config_of(bytes, 255, 3)); });
  expect_error(ExitCode::data, {ones, "a token besides the mask token"},
               [&] { open_samples(config_of(ones, 2, 0)); });
}

TEST(Samples, SyntheticTokensLeaveTheDefaultMaskTokenFree) {
  EXPECT_EQ(open_samples(config_of("synthetic", 64, -1))->vocab_size(), 63);
  EXPECT_EQ(open_samples(config_of("synthetic", 64, 5))->vocab_size(), 64);
  Config next_token = config_of("synthetic", 64, -1);
  next_token.data.objective = Objective::next_token;
  EXPECT_EQ(open_samples(next_token)->vocab_size(), 64);
}

}  // namespace
}  // namespace weft
