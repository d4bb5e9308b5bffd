// The cuts of a model into pieces, against every way to cut it.
#include "parallel/pipeline/partition.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "src/core/random.hpp"

namespace weft {
namespace {

using Sizes = std::vector<int64_t>;

Sizes sizes_of(const Cuts& cuts) {
  Sizes sizes;
  for (int p = 0; p < cuts.pieces(); ++p) sizes.push_back(cuts.size(p));
  return sizes;
}

/// All ways to cut `count` layers into pieces, early cuts first.
void for_all_sizes(int64_t count, int pieces, Sizes& before,
                   const std::function<void(const Sizes&)>& f) {
  if (pieces == 1) {
    before.push_back(count);
    f(before);
    before.pop_back();
    return;
  }
  for (int64_t size = 1; size <= count - (pieces - 1); ++size) {
    before.push_back(size);
    for_all_sizes(count - size, pieces - 1, before, f);
    before.pop_back();
  }
}

Sizes best_of_all(const std::vector<double>& costs, int pieces) {
  Sizes best, before;
  std::pair<double, double> least;
  for_all_sizes(std::ssize(costs), pieces, before, [&](const Sizes& sizes) {
    double largest = 0, squares = 0;
    size_t layer = 0;
    for (const int64_t size : sizes) {
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) sum += costs[layer++];
      largest = std::max(largest, sum);
      squares += sum * sum;
    }
    const std::pair total{largest, squares};
    if (best.empty() || total < least) {
      best = sizes;
      least = total;
    }
  });
  return best;
}

TEST(PipelinePartition, IsTheBestOfAllWaysToCut) {
  int64_t cells = 0;
  for (int count = 1; count <= 11; ++count) {
    for (int pieces = 1; pieces <= count; ++pieces) {
      for (int draw = 0; draw < 6; ++draw) {
        const RandomStream random(draw, "costs");
        std::vector<double> costs(count);  // integers: sums of squares are exact
        for (int i = 0; i < count; ++i) {
          costs[i] = draw == 0 ? 1 : std::floor(random.uniform(i) * (draw < 3 ? 4 : 1000));
        }
        EXPECT_EQ(sizes_of(balanced_pieces(costs, pieces)), best_of_all(costs, pieces))
            << count << " layers, " << pieces << " pieces, draw " << draw;
        ++cells;
      }
    }
  }
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

TEST(PipelinePartition, GivesTheEndsOfTheModelFewerLayers) {
  // The embedding costs next to nothing, the head as much as two layers.
  EXPECT_EQ(sizes_of(balanced_pieces(std::vector<double>{1, 1, 1, 1, 1, 1, 1, 3}, 2)),
            (Sizes{5, 3}));
  // Equal layers: as even as can be.
  EXPECT_EQ(sizes_of(balanced_pieces(std::vector<double>(9, 1.0), 4)), (Sizes{2, 2, 2, 3}));
}

TEST(PipelinePartition, RefusesMorePiecesThanLayers) {
  EXPECT_THROW(balanced_pieces(std::vector<double>{1, 1}, 3), Error);
  EXPECT_EQ(sizes_of(balanced_pieces(std::vector<double>{0, 5}, 2)), (Sizes{1, 1}));
}

}  // namespace
}  // namespace weft
