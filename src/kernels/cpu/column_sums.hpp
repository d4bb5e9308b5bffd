// What the rows of a call add to a parameter with an entry a column.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::cpu {

/// Sums over rows, in f64: single terms are lost in a large f32 sum.
class ColumnSums {
 public:
  explicit ColumnSums(int64_t columns) : sums_(columns) {}

  double* data() { return sums_.data(); }
  template <class T>
  void add(int64_t column, T term) {
    sums_[column] += static_cast<double>(term);
  }
  /// gradient[c] += the sum of column c.
  template <class T>
  void add_to(T* gradient) const {
    for (size_t c = 0; c < sums_.size(); ++c) gradient[c] += static_cast<T>(sums_[c]);
  }

 private:
  std::vector<double> sums_;
};

}  // namespace weft::cpu
