// What a state mixer sends over the sequence axis: a scan of one state each way, whatever the
// tokens.
#include <gtest/gtest.h>

#include "tests/mix_states_testing.hpp"
#include "tests/sequence_grid.hpp"
#include "tests/state_scan_formulas.hpp"

namespace weft {
namespace {

/// Bytes of a shard's state and transition, by the kind.
ScanByteShape byte_shape(const naive::StateMixerInputs& in, int ranks, DType dtype) {
  const int64_t heads = in.batch * in.heads, wide = size_of(accumulator_of(dtype));
  int64_t transition = heads;  // a log decay a head; of none and fixed too, for documents
  if (in.kind == StateKind::vector) transition *= in.key_dim;
  if (in.kind == StateKind::delta) transition *= in.key_dim * in.key_dim;
  return {ranks, heads * in.key_dim * in.value_dim * wide, transition * wide};
}

/// One a scan; state_scan_bytes_test has those of every option.
std::vector<ScanFormula> formulas_of_the_table() {
  std::vector<ScanFormula> all = scan_formulas();
  std::erase_if(all, [](const ScanFormula& formula) {
    const bool option = formula.name.starts_with("zeco") || formula.name.starts_with("two_level");
    return option && formula.name != "zeco of 6" && formula.name != "two_level of 0";
  });
  WEFT_CHECK(all.size() == state_scans().size(), all.size(), " formulas");
  return all;
}

TEST(MixStatesBytes, AreTheClosedFormWhateverTheTokens) {
  int64_t cells = 0;
  for (const int ranks : {2, 4, 8, 16}) {
    const Case layouts[] = {{"short", Cuts::even(3 * ranks, ranks), {}},
                            {"long", Cuts::even(70 * ranks + 5, ranks), {1, 70, 77}}};
    for (const StateKind kind : kStateKinds) {
      for (const Case& c : layouts) {
        const auto in = sequence_problem(kind, c.cuts.total(), c.document_starts);
        for (const ScanFormula& formula : formulas_of_the_table()) {
          const MixRun run = run_mix(for_any_shard(formula.make), in, c.cuts, DType::f32);
          const ScanByteShape shape = byte_shape(in, ranks, DType::f32);
          for (int rank = 0; rank < ranks; ++rank) {
            EXPECT_EQ(run.forward_bytes[rank], formula.sent(shape, rank))
                << formula.name << ", " << name(kind) << ", rank " << rank << " of " << ranks;
            EXPECT_EQ(run.backward_bytes[rank], formula.sent(shape, ranks - 1 - rank))
                << formula.name << ", " << name(kind) << ", rank " << rank << " of " << ranks;
          }
          ++cells;
        }
      }
    }
  }
  print_cells(cells);
}

}  // namespace
}  // namespace weft
