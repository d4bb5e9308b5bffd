#include "src/kernels/attention_pieces.hpp"

#include <algorithm>

namespace weft {

std::vector<AttentionPiece> pieces_of(const BandMask& band, int64_t queries, int64_t first_key,
                                      int64_t keys) {
  using Mask = AttentionPiece::Mask;
  WEFT_CHECK(band.causal || band.window == 0, "a window of ", band.window, " without causal mask");
  if (queries <= 0 || keys <= 0) return {};
  if (!band.causal) return {{0, queries, 0, keys, Mask::full}};

  // Query i sees the keys [low(i), i + own + 1) of the block, as far as they are in it.
  const int64_t own = band.first_query - first_key;
  const int64_t window = band.window > 0 ? band.window : own + queries;
  const auto low = [&](int64_t i) { return std::max<int64_t>(0, i + own + 1 - window); };
  const int64_t begin = std::max<int64_t>(0, -own);
  const int64_t end = std::clamp(keys + window - 1 - own, begin, std::max(begin, queries));
  if (begin >= std::min(end, queries)) return {};

  std::vector<AttentionPiece> pieces;
  // Queries whose own key is in the block: the diagonal ends in the piece's last corner.
  const int64_t past = std::clamp(keys - own, begin, end);
  if (begin < past) {
    const int64_t k_begin = low(begin), k_end = past + own;
    const bool bound = low(past - 1) > k_begin;
    pieces.push_back({begin, past, k_begin, k_end, Mask::causal, bound ? window : 0});
  }
  // Later queries: those that the window lets see all keys, then those that see fewer and fewer,
  // the last one that sees all before them.
  const int64_t fading = low(end - 1) == 0 ? end : std::clamp(window - own - 1, past, end);
  if (past < fading) pieces.push_back({past, fading, 0, keys, Mask::full});
  if (fading < end) pieces.push_back({fading, end, low(fading), keys, Mask::upper});
  return pieces;
}

}  // namespace weft
