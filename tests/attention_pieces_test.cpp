// Masks as rectangles: every pair that a query sees is in one piece, and nothing else is.
#include "src/kernels/attention_pieces.hpp"

#include <gtest/gtest.h>

#include <set>

namespace weft {
namespace {

using Mask = AttentionPiece::Mask;
using Pairs = std::set<std::pair<int64_t, int64_t>>;

/// What the definition of a band leaves.
Pairs seen(const BandMask& band, int64_t queries, int64_t first_key, int64_t keys) {
  Pairs pairs;
  for (int64_t i = 0; i < queries; ++i) {
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t query = band.first_query + i, key = first_key + j;
      const bool hidden =
          band.causal && (key > query || (band.window > 0 && key <= query - band.window));
      if (!hidden) pairs.emplace(i, j);
    }
  }
  return pairs;
}

/// What the definition of a piece's mask leaves.
bool sees(const AttentionPiece& piece, int64_t i, int64_t j) {
  switch (piece.mask) {
    case Mask::full:
      return true;
    case Mask::causal: {
      const int64_t last = i + piece.keys() - piece.queries();
      return j <= last && (piece.window == 0 || j > last - piece.window);
    }
    case Mask::upper:
      return j >= i;
  }
  return false;
}

void check(const BandMask& band, int64_t queries, int64_t first_key, int64_t keys) {
  SCOPED_TRACE(concat("queries ", band.first_query, " + ", queries, ", keys ", first_key, " + ",
                      keys, ", causal ", band.causal, ", window ", band.window));
  const Pairs wanted = seen(band, queries, first_key, keys);
  Pairs got;
  const auto pieces = pieces_of(band, queries, first_key, keys);
  EXPECT_LE(pieces.size(), 3u);
  for (const AttentionPiece& piece : pieces) {
    ASSERT_TRUE(0 <= piece.q_begin && piece.q_begin < piece.q_end && piece.q_end <= queries);
    ASSERT_TRUE(0 <= piece.k_begin && piece.k_begin < piece.k_end && piece.k_end <= keys);
    if (piece.mask != Mask::full) {
      EXPECT_LE(piece.queries(), piece.keys());
    }
    std::set<int64_t> keys_seen;
    for (int64_t i = 0; i < piece.queries(); ++i) {
      bool any = false;
      for (int64_t j = 0; j < piece.keys(); ++j) {
        if (!sees(piece, i, j)) continue;
        any = true;
        keys_seen.insert(j);
        EXPECT_TRUE(got.emplace(piece.q_begin + i, piece.k_begin + j).second) << "twice";
      }
      EXPECT_TRUE(any) << "query " << piece.q_begin + i << " sees nothing of its piece";
    }
    EXPECT_EQ(std::ssize(keys_seen), piece.keys());
  }
  EXPECT_EQ(got, wanted);
}

TEST(AttentionPieces, HoldEveryPairOnce) {
  for (const int64_t queries : {0, 1, 3, 7}) {
    for (const int64_t keys : {0, 1, 2, 6, 9}) {
      for (int64_t first_query = 0; first_query < 18; ++first_query) {
        for (const int64_t first_key : {0, 4, 9}) {
          check({first_query, false, 0}, queries, first_key, keys);
          for (const int64_t window : {0, 1, 2, 4, 8, 50}) {
            check({first_query, true, window}, queries, first_key, keys);
          }
        }
      }
    }
  }
}

TEST(AttentionPieces, OfCommonBlocksAreOne) {
  using Pieces = std::vector<AttentionPiece>;
  // The own block, an earlier rank's keys, all keys up to the last query, a later rank's keys.
  EXPECT_EQ(pieces_of({8, true, 0}, 8, 8, 8), (Pieces{{0, 8, 0, 8, Mask::causal}}));
  EXPECT_EQ(pieces_of({8, true, 0}, 8, 0, 8), (Pieces{{0, 8, 0, 8, Mask::full}}));
  EXPECT_EQ(pieces_of({8, true, 0}, 8, 0, 20), (Pieces{{0, 8, 0, 16, Mask::causal}}));
  EXPECT_EQ(pieces_of({8, true, 0}, 8, 16, 8), Pieces{});
  EXPECT_EQ(pieces_of({8, false, 0}, 8, 16, 5), (Pieces{{0, 8, 0, 5, Mask::full}}));
  // A window: the own block, and its halo of window - 1 keys.
  EXPECT_EQ(pieces_of({8, true, 4}, 8, 8, 8), (Pieces{{0, 8, 0, 8, Mask::causal, 4}}));
  EXPECT_EQ(pieces_of({8, true, 4}, 8, 5, 3), (Pieces{{0, 3, 0, 3, Mask::upper}}));
}

}  // namespace
}  // namespace weft
