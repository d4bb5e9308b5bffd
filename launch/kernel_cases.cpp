#include "launch/kernel_cases.hpp"

#include <iterator>

namespace weft {

const std::vector<KernelCase>& kernel_cases() {
  static const std::vector<KernelCase> cases = [] {
    std::vector<KernelCase> all;
    for (auto* family : {product_cases, token_cases, attention_cases, around_mixer_cases,
                         state_cases, loss_cases}) {
      std::vector<KernelCase> some = family();
      all.insert(all.end(), std::make_move_iterator(some.begin()),
                 std::make_move_iterator(some.end()));
    }
    return all;
  }();
  return cases;
}

}  // namespace weft
