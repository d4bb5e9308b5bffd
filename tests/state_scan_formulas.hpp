// Every state scan of the table, and what its options make of it, beside its closed forms.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/sequence/scan_bytes.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {

struct ScanFormula {
  std::string name;
  MakeScan make;
  std::function<int64_t(const ScanByteShape&, int position)> sent;
  std::function<int(int ranks)> calls;
};

inline std::vector<ScanFormula> scan_formulas() {
  std::vector<ScanFormula> all = {
      {"lasp", [] { return make_lasp_scan({}); }, chain_bytes, [](int P) { return P - 1; }},
      {"lasp2", [] { return make_lasp2_scan({}); }, lasp2_bytes, [](int) { return 1; }},
      {"doubling", [] { return make_doubling_scan({}); }, doubling_bytes, doubling_rounds}};
  for (const int64_t blocks : {1, 2, 5, 6, 20}) {
    all.push_back({concat("zeco of ", blocks),
                   [=] { return make_zeco_scan({.zeco_blocks = blocks}); }, chain_bytes,
                   [=](int P) { return P == 1 ? 0 : P - 2 + static_cast<int>(blocks); }});
  }
  for (const int group : {0, 1, 2, 3, 16}) {
    const auto size = [=](int P) { return group == 0 ? default_group(P) : group; };
    all.push_back(
        {concat("two_level of ", group), [=] { return make_two_level_scan({.group = group}); },
         [=](const ScanByteShape& s, int i) { return two_level_bytes(s, i, size(s.ranks)); },
         [=](int P) { return 1 + (P + size(P) - 1) / size(P); }});
  }
  return all;
}

}  // namespace weft
