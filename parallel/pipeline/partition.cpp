#include "parallel/pipeline/partition.hpp"

#include <algorithm>
#include <functional>
#include <limits>

namespace weft {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

/// The least total for cutting layers [i, count) into k pieces, [k][i], where a piece of `sum`
/// costs `price` and `join` adds the price of one to the total of those behind it.
using Totals = std::vector<std::vector<double>>;
using Price = std::function<double(double sum)>;
using Join = std::function<double(double price, double rest)>;

/// The sums of layers [0, i).
std::vector<double> prefix_sums(std::span<const double> costs) {
  std::vector<double> sums(costs.size() + 1);
  for (size_t i = 0; i < costs.size(); ++i) sums[i + 1] = sums[i] + costs[i];
  return sums;
}

Totals least_totals(const std::vector<double>& sums, int pieces, const Price& price,
                    const Join& join) {
  const int count = static_cast<int>(sums.size()) - 1;
  Totals least(pieces + 1, std::vector<double>(count + 1, kNever));
  least[0][count] = 0;
  for (int k = 1; k <= pieces; ++k) {
    for (int begin = 0; begin < count; ++begin) {
      for (int end = begin + 1; end <= count; ++end) {
        const double total = join(price(sums[end] - sums[begin]), least[k - 1][end]);
        least[k][begin] = std::min(least[k][begin], total);
      }
    }
  }
  return least;
}

}  // namespace

Cuts balanced_pieces(std::span<const double> costs, int pieces) {
  const int count = static_cast<int>(costs.size());
  WEFT_REQUIRE(pieces >= 1 && pieces <= count, ExitCode::config, "expected at least ", pieces,
               " layers, one a piece of the pipeline, got ", count);
  const std::vector<double> sums = prefix_sums(costs);
  const Totals largest = least_totals(
      sums, pieces, [](double sum) { return sum; },
      [](double sum, double rest) { return std::max(sum, rest); });
  const double limit = largest[pieces][0];
  const Price square = [&](double sum) { return sum <= limit ? sum * sum : kNever; };
  const Join add = std::plus<>();
  const Totals squares = least_totals(sums, pieces, square, add);
  std::vector<int64_t> sizes;
  for (int begin = 0, k = pieces; k > 0; --k) {
    int end = begin + 1;
    while (add(square(sums[end] - sums[begin]), squares[k - 1][end]) > squares[k][begin]) ++end;
    sizes.push_back(end - begin);
    begin = end;
  }
  return Cuts::of_sizes(sizes);
}

}  // namespace weft
