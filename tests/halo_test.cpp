// Sliding-window attention across ranks: who sends what, by enumeration; outputs and gradients
// against the oracle, on time and late; bytes.
#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "parallel/sequence/halo.hpp"
#include "src/kernels/attention.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

constexpr int kRanks[] = {1, 2, 3, 4, 5, 8};
/// Nothing, the neighbour's last token, about a shard, more than a shard, more than there is.
constexpr int64_t kWindows[] = {1, 2, 5, 7, 1000};

std::string where(const Case& c, int64_t window) {
  return concat(c.name, ", window ", window);
}

// ---- Pieces

/// Every (sender, receiver, token) that some query of the receiver sees, query by query.
std::set<std::tuple<int, int, int64_t>> tokens_that_travel(const Cuts& cuts, int64_t window) {
  std::set<std::tuple<int, int, int64_t>> found;
  for (int reader = 0; reader < cuts.pieces(); ++reader) {
    for (int64_t t = cuts.begin(reader); t < cuts.end(reader); ++t) {
      for (int owner = 0; owner < reader; ++owner) {
        for (int64_t key = cuts.begin(owner); key < cuts.end(owner); ++key) {
          if (key > t - window) found.insert({owner, reader, key});
        }
      }
    }
  }
  return found;
}

void expect_pieces(const Cuts& cuts, int64_t window, const std::string& name) {
  std::set<std::tuple<int, int, int64_t>> received, sent;
  for (int rank = 0; rank < cuts.pieces(); ++rank) {
    int last_peer = -1;
    for (const auto& [peer, begin, end] : halo_pieces(cuts, window, rank)) {
      EXPECT_GT(peer, std::exchange(last_peer, peer)) << name;
      EXPECT_LT(begin, end) << name;
      for (int64_t t = begin; t < end; ++t) received.insert({peer, rank, t});
    }
    last_peer = rank;
    for (const auto& [peer, begin, end] : halo_sends(cuts, window, rank)) {
      EXPECT_GT(peer, std::exchange(last_peer, peer)) << name;
      EXPECT_LT(begin, end) << name;
      for (int64_t t = begin; t < end; ++t) sent.insert({rank, peer, t});
    }
  }
  const auto expected = tokens_that_travel(cuts, window);
  EXPECT_EQ(received, expected) << name;
  EXPECT_EQ(sent, expected) << name;
}

TEST(HaloPieces, AreWhatQueriesSee) {
  for (const int ranks : kRanks) {
    for (const auto& [name, cuts] : cuts_of(ranks)) {
      for (int64_t window = 1; window <= cuts.total() + 2; ++window) {
        expect_pieces(cuts, window, concat(ranks, " ranks, ", name, ", window ", window));
      }
    }
  }
}

TEST(HaloPieces, SkipEmptyShardsAndReachOverShortOnes) {
  using Pieces = std::vector<HaloPiece>;
  const Cuts cuts = Cuts::of_sizes({4, 0, 1, 2, 0, 3});
  EXPECT_EQ(halo_pieces(cuts, 5, 5), (Pieces{{0, 3, 4}, {2, 4, 5}, {3, 5, 7}}));
  EXPECT_EQ(halo_pieces(cuts, 5, 4), Pieces{});
  EXPECT_EQ(halo_pieces(cuts, 5, 2), (Pieces{{0, 0, 4}}));
  EXPECT_EQ(halo_sends(cuts, 5, 0), (Pieces{{2, 0, 4}, {3, 1, 4}, {5, 3, 4}}));
  EXPECT_EQ(halo_sends(cuts, 1, 0), Pieces{});
  EXPECT_EQ(halo_pieces(cuts, int64_t{1} << 40, 3), (Pieces{{0, 0, 4}, {2, 4, 5}}));
}

TEST(WindowPairs, AreCounted) {
  for (int64_t window : {1, 2, 3, 5, 20}) {
    for (const auto& [q_begin, q_end, k_begin, k_end] : std::vector<std::array<int64_t, 4>>{
             {0, 9, 0, 9}, {6, 9, 0, 6}, {6, 9, 2, 4}, {0, 4, 6, 9}, {3, 3, 0, 3}, {6, 9, 4, 4}}) {
      double pairs = 0;
      for (int64_t i = q_begin; i < q_end; ++i) {
        for (int64_t j = k_begin; j < k_end; ++j) pairs += j <= i && j > i - window;
      }
      EXPECT_EQ(window_pairs(q_begin, q_end, k_begin, k_end, window), pairs) << window;
    }
  }
}

// ---- Results

class Halo : public testing::TestWithParam<int> {
 protected:
  void run_grid(DType dtype, double tolerance) {
    int64_t cells = 0;
    for (const Case& c : grid(GetParam())) {
      for (const int64_t window : kWindows) {
        for (const AttentionShape& shape : kHeads) {
          const AttentionProblem p = problem(c, dtype, shape, {.window = window});
          const StrategyRun run =
              run_strategy(make_windowed_attention, p, c.cuts, /*causal=*/true, window);
          expect_near(run.result, oracle_attention(p), tolerance, where(c, window));
          EXPECT_TRUE(run.ledgers_agree) << where(c, window);
          ++cells;
        }
      }
    }
    print_cells(cells);
  }
};

TEST_P(Halo, EqualsTheOracleInF64) {
  run_grid(DType::f64, 1e-12);
}
TEST_P(Halo, EqualsTheOracleInF32) {
  run_grid(DType::f32, 1e-5);
}

TEST_P(Halo, EqualsTheOracleDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, 1e-12);
  set_late_delivery(false);
}

TEST_P(Halo, IsTheSameBitsEveryTime) {
  const Case c{"", cuts_of(GetParam())[1].second, {}};
  const AttentionProblem p = problem(c, DType::f32, kHeads[1], {.window = 7});
  const auto run = [&] { return run_strategy(make_windowed_attention, p, c.cuts, true, 7).result; };
  const AttentionResult first = run();
  for (int again = 0; again < 3; ++again) {
    const AttentionResult other = run();
    EXPECT_TRUE(same_bits(other.out, first.out) && same_bits(other.dq, first.dq));
    EXPECT_TRUE(same_bits(other.dk, first.dk) && same_bits(other.dv, first.dv));
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Halo, testing::ValuesIn(kRanks));

// ---- Bytes

int64_t tokens_of(const std::vector<HaloPiece>& pieces) {
  int64_t tokens = 0;
  for (const HaloPiece& piece : pieces) tokens += piece.tokens();
  return tokens;
}

TEST(HaloBytes, AreThePiecesWhateverTheDocuments) {
  const AttentionShape shape = kHeads[1];
  const int64_t per_token = shape.batch * 2 * shape.kv_heads * shape.width * 4;  // f32
  for (const int ranks : kRanks) {
    for (const Case& c : grid(ranks)) {
      for (const int64_t window : kWindows) {
        const AttentionProblem p = problem(c, DType::f32, shape, {.window = window});
        const StrategyRun run = run_strategy(make_windowed_attention, p, c.cuts, true, window);
        EXPECT_TRUE(run.ledgers_agree) << where(c, window);
        for (int r = 0; r < ranks; ++r) {
          const int64_t out = per_token * tokens_of(halo_sends(c.cuts, window, r));
          const int64_t home = per_token * tokens_of(halo_pieces(c.cuts, window, r));
          EXPECT_EQ(run.forward_bytes[r], out) << where(c, window) << ", rank " << r;
          EXPECT_EQ(run.backward_bytes[r], out + home) << where(c, window) << ", rank " << r;
        }
      }
    }
  }
}

TEST(HaloBytes, DependNeitherOnLengthNorRanks) {
  for (const int ranks : {2, 4, 8}) {
    for (const int64_t tokens : {10, 100, 1000}) {
      EXPECT_EQ(tokens_of(halo_sends(Cuts::even(tokens * ranks, ranks), 7, 0)), 6);
    }
  }
}

}  // namespace
}  // namespace weft
