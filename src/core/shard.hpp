// The cuts of one dim over the ranks of one axis.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "src/core/check.hpp"

namespace weft {

/// Contiguous pieces of [0, total): piece p is [begin(p), end(p)). Pieces may be uneven or empty.
class Cuts {
 public:
  /// The default of every axis: piece p is [floor(p total / pieces), floor((p+1) total / pieces)).
  static Cuts even(int64_t total, int pieces) {
    WEFT_CHECK(total >= 0 && pieces > 0, "total ", total, ", pieces ", pieces);
    std::vector<int64_t> bounds(pieces + 1);
    for (int p = 0; p <= pieces; ++p) {
      bounds[p] = static_cast<int64_t>(static_cast<__int128>(total) * p / pieces);
    }
    return Cuts(std::move(bounds));
  }

  /// Pieces of the given sizes, in rank order.
  static Cuts of_sizes(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> bounds(sizes.size() + 1, 0);
    for (size_t p = 0; p < sizes.size(); ++p) {
      WEFT_CHECK(sizes[p] >= 0, "piece ", p, " has size ", sizes[p]);
      bounds[p + 1] = bounds[p] + sizes[p];
    }
    return Cuts(std::move(bounds));
  }

  int pieces() const { return static_cast<int>(bounds_.size()) - 1; }
  int64_t total() const { return bounds_.back(); }
  int64_t begin(int p) const { return bounds_.at(p); }
  int64_t end(int p) const { return bounds_.at(p + 1); }
  int64_t size(int p) const { return end(p) - begin(p); }

  int64_t largest() const {
    int64_t most = 0;
    for (int p = 0; p < pieces(); ++p) most = std::max(most, size(p));
    return most;
  }

 private:
  explicit Cuts(std::vector<int64_t> bounds) : bounds_(std::move(bounds)) {}

  std::vector<int64_t> bounds_;  // pieces + 1 ascending offsets, the first 0
};

}  // namespace weft
