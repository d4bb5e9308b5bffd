// The checksum of parameters: one number for one model, however it is cut, and another one for any
// other values.
#include "launch/parameter_checksum.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <mutex>
#include <numeric>
#include <set>

#include "tests/parity_testing.hpp"

namespace weft {
namespace {

constexpr int64_t kRows = 6, kColumns = 10;

/// Of a matrix [kRows, kColumns], of which a rank has the indices [begin, end) of one dim.
Parameter matrix(int cut_dim = -1, int64_t begin = 0, int64_t end = 0) {
  return {.name = "some.weight",
          .shape = {kRows, kColumns},
          .cut_dim = cut_dim,
          .begin = begin,
          .end = end};
}

std::vector<float> numbers() {
  std::vector<float> values(kRows * kColumns);
  std::iota(values.begin(), values.end(), 0.5f);
  return values;
}

/// Of elements [begin, end) of the rank's piece of a matrix that is `whole`.
uint64_t checksum_of(const Parameter& parameter, int64_t begin, int64_t end,
                     const std::vector<float>& whole) {
  std::vector<float> values;
  for (int64_t i = begin; i < end; ++i) values.push_back(whole[parameter.global_index(i)]);
  const int64_t dims[] = {end - begin};
  const OwnedPiece piece{.parameter = &parameter,
                         .begin = begin,
                         .end = end,
                         .value = Tensor::view(values.data(), DType::f32, Device::cpu, dims),
                         .gradient = {},
                         .master = {}};
  const auto stream = make_inline_stream();
  return parameter_checksum({&piece, 1}, *stream);
}

uint64_t checksum_of(const std::vector<float>& whole) {
  return checksum_of(matrix(), 0, kRows * kColumns, whole);
}

TEST(ParameterChecksum, IsTheSumOverAnyPieces) {
  const std::vector<float> whole = numbers();
  const uint64_t expected = checksum_of(whole);
  for (const int dim : {0, 1}) {
    const int64_t length = dim == 0 ? kRows : kColumns;
    for (int64_t cut = 1; cut < length; ++cut) {
      uint64_t sum = 0;
      for (const Parameter& part : {matrix(dim, 0, cut), matrix(dim, cut, length)}) {
        // Owners of a part need not begin or end with a row of it.
        const int64_t a = part.numel() / 3, b = part.numel() - 2;
        for (const auto& [begin, end] :
             {std::pair<int64_t, int64_t>{0, a}, {a, b}, {b, b}, {b, part.numel()}}) {
          sum += checksum_of(part, begin, end, whole);
        }
      }
      EXPECT_EQ(sum, expected) << "dim " << dim << " at " << cut;
    }
  }
}

TEST(ParameterChecksum, KnowsEveryBitAndEveryPlace) {
  std::set<uint64_t> seen{checksum_of(numbers())};
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    for (int bit = 0; bit < 32; ++bit) {
      std::vector<float> values = numbers();
      values[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(values[i]) ^ (1u << bit));
      EXPECT_TRUE(seen.insert(checksum_of(values)).second) << "bit " << bit << " of " << i;
    }
  }
  for (int64_t i = 1; i < kRows * kColumns; ++i) {
    std::vector<float> values = numbers();
    std::swap(values[0], values[i]);
    EXPECT_TRUE(seen.insert(checksum_of(values)).second) << "exchanged with " << i;
  }
  Parameter other = matrix();
  other.name = "other.weight";
  EXPECT_TRUE(seen.insert(checksum_of(other, 0, other.numel(), numbers())).second);
}

/// More than is on the host at a time, in the columns of a cut matrix.
TEST(ParameterChecksum, OfLargeMatrices) {
  constexpr int64_t kWide = (int64_t{1} << 21) + 7;
  const std::vector<float> whole(2 * kWide, 1.25f);
  const Parameter all{.name = "wide.weight", .shape = {2, kWide}};
  uint64_t sum = 0;
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 100}, {100, kWide}}) {
    const Parameter part{
        .name = all.name, .shape = all.shape, .cut_dim = 1, .begin = begin, .end = end};
    sum += checksum_of(part, 0, part.numel(), whole);
  }
  EXPECT_EQ(sum, checksum_of(all, 0, all.numel(), whole));
}

/// Of the initial values, which no mesh changes.
uint64_t initial_checksum(const Config& config) {
  std::mutex mutex;
  uint64_t sum = 0;
  threads_of(config)([&](World& world) {
    Trainer trainer(config, world, plan_step(config, world.rank()).memory);
    const uint64_t mine = parameter_checksum(trainer.owned(), trainer.compute());
    const std::lock_guard lock(mutex);
    sum += mine;
  });
  return sum;
}

TEST(ParameterChecksum, IsThatOfTheModelOnEveryMesh) {
  for (const Sets& model :
       {Sets{}, Sets{"model.tie_word_embeddings=true"},
        Sets{"model.layer_pattern=LG", "model.linear.family=gla", "optimizer.name=muon"}}) {
    Config config = parity_config(model);
    config.mesh = {};
    const uint64_t expected = initial_checksum(config);
    for (const auto& [data, pipeline, sequence, tensor] : std::vector<std::array<int, 4>>{
             {3, 1, 1, 1}, {1, 2, 1, 1}, {1, 1, 3, 1}, {1, 1, 1, 4}, {2, 2, 1, 2}}) {
      config.mesh.size = {data, pipeline, sequence, tensor};
      for (const int64_t zero : {1, 3}) {
        config.optimizer.zero = zero;
        EXPECT_EQ(initial_checksum(config), expected) << config.mesh.text() << ", ZeRO " << zero;
      }
    }
    config.train.seed = 2;
    EXPECT_NE(initial_checksum(config), expected);
  }
}

}  // namespace
}  // namespace weft
