// Attention of up to 131072 tokens against the CPU twin in f64, by samples of its queries and keys.
#include "tests/cuda/attention_testing.hpp"

namespace weft {
namespace {

constexpr int64_t kTokens = 131072;

/// `range` of one dimension of a tensor, as numbers.
Values part(const Values& x, const std::vector<int64_t>& shape, int dim, Range range) {
  return values(f64(shape, x).view().slice(dim, range.begin, range.end));
}

class LongAttention : public CudaDtypeTest {
 protected:
  /// Both passes in `blocks` of keys; outputs and gradients of the queries and keys of `samples`
  /// from the CPU's own way through them.
  void check(const Problem& p, const std::vector<Range>& blocks,
             const std::vector<Range>& samples) {
    const Sizes& s = p.s;
    const double tolerance = tolerance_of(dtype());
    // cuDNN adds up dq in an order of its own: once is enough where the host knows the mask.
    const Result got = p.band ? once_on_device(p, blocks) : on_device(p, blocks);
    for (const Range range : samples) {
      SCOPED_TRACE(concat(s.keys, " tokens, D ", s.dim, ", rows from ", range.begin));
      Problem rows = p;  // these queries, all keys
      rows.s.queries = range.end - range.begin;
      rows.q = part(p.q, p.q_shape(), 1, range);
      rows.dout = part(p.dout, p.q_shape(), 1, range);
      rows.key_begin = part(p.key_begin, {s.batch, s.queries}, 1, range);
      rows.key_end = part(p.key_end, {s.batch, s.queries}, 1, range);
      const Result host = on_host(rows, {{0, s.keys}});
      EXPECT_LE(relative_rms(part(got.out, p.q_shape(), 1, range), host.out), tolerance);
      EXPECT_LE(relative_rms(part(got.lse, p.row_shape(), 2, range), host.lse), 1e-5);
      EXPECT_LE(relative_rms(part(got.dq, p.q_shape(), 1, range), host.dq, 0.1 * rms(host.dv)),
                tolerance);
      // These keys, all queries, from the GPU's lse and out.
      const HostSide all(p, DType::f64, DType::f64, &make_host);
      assign(all.out, got.out);
      assign(all.lse, got.lse);
      all.backward(p, {range}, cpu_stream());
      const auto keys = [&](const Values& x) { return part(x, p.k_shape(), 1, range); };
      const Values dv = keys(values(all.dv));
      EXPECT_LE(relative_rms(keys(got.dk), keys(values(all.dk)), 0.1 * rms(dv)), tolerance);
      EXPECT_LE(relative_rms(keys(got.dv), dv), tolerance);
    }
  }

  /// One document, whose mask the host knows.
  Problem of_one_document(const Sizes& s) {
    Problem p = problem(dtype(), s, std::vector<int64_t>{}, {true, 0});
    p.band = BandMask{0, true, 0};
    return p;
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, LongAttention, testing::Values(DType::f32, DType::bf16),
                         dtype_name);

TEST_P(LongAttention, InDocuments) {
  for (const int64_t dim : {64, 128}) {
    check(problem(dtype(), {1, 2, 1, dim, 4096, 4096}, {1000, 1003, 2900}, {true, 0}),
          {{0, 2048}, {2048, 4096}}, {{0, 40}, {1990, 2060}, {4000, 4096}});
  }
}

TEST_P(LongAttention, Of128KTokensInDocuments) {
  for (const int64_t dim : {64, 128}) {
    check(problem(dtype(), {1, 1, 1, dim, kTokens, kTokens}, {9, 70001, 99999}, {true, 0}),
          {{0, 65536}, {65536, kTokens}}, {{65530, 65545}});
  }
}

TEST_P(LongAttention, Of128KTokens) {
  for (const int64_t dim : {64, 128}) {
    check(of_one_document({1, 1, 1, dim, kTokens, kTokens}), {{0, kTokens}},
          {{65530, 65545}, {kTokens - 16, kTokens}});
  }
}

}  // namespace
}  // namespace weft
