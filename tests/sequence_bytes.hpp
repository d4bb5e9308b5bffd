// Closed forms of what a strategy sends, from docs/sequence.md: by rank, for any cuts.
#pragma once

#include <set>

#include "src/tensor/dtype.hpp"
#include "tests/sequence_testing.hpp"

namespace weft {

struct SentBytes {
  int64_t forward = 0, backward = 0;
  bool operator==(const SentBytes&) const = default;
};

/// One layer of attention of a sequence over `cuts`, as rank p sees it.
struct ByteShape {
  Cuts cuts;
  AttentionShape shape;
  DType dtype;
  bool causal = true;

  int ranks() const { return cuts.pieces(); }
  int64_t N() const { return cuts.total(); }
  int64_t T(int p) const { return cuts.size((p + ranks()) % ranks()); }
  int64_t e() const { return size_of(dtype); }
  int64_t w() const { return size_of(accumulator_of(dtype)); }
  int64_t kv() const { return 2 * shape.batch * shape.kv_heads * shape.width; }  // of a token
  int64_t q() const { return shape.batch * shape.heads * shape.width; }
  int64_t rows() const { return shape.batch * shape.heads; }
};

inline SentBytes ring_bytes(const ByteShape& s, int p) {
  if (s.ranks() == 1) return {};
  const int64_t keys = s.kv() * s.e() * (s.N() - s.T(p + 1));
  return {keys, keys + s.kv() * s.w() * (s.N() - s.T(p))};
}

/// Rings of k and v in both passes, and a reduce-scatter.
inline SentBytes rsa_bytes(const ByteShape& s, int p) {
  return ring_bytes(s, p);
}

/// Keys to the P-1-h next ranks that exist; queries to a helper for the farthest h distances, and
/// where `halves` is odd, 2 h + 1, the late half of them for distance P-1-h.
inline SentBytes lightseq_bytes(const ByteShape& s, int p, int halves) {
  SentBytes sent;
  const int P = s.ranks(), last = s.causal ? P - 1 - halves / 2 : P - 1;
  for (int t = 1; t <= last; ++t) {
    const bool gives = !s.causal || p + t < P, takes = !s.causal || p >= t;
    if (gives) sent.forward += s.kv() * s.e() * s.T(p);
    if (gives) sent.backward += s.kv() * s.e() * s.T(p);
    if (takes) sent.backward += s.kv() * s.w() * s.T(p - t);
  }
  if (!s.causal) return sent;
  const auto help = [&](int distance, int part) {  // a part-th of the queries, the smaller one
    if (p >= distance) {                           // helped
      const int64_t given = s.T(p) / part;
      sent.forward += s.q() * s.e() * given;
      sent.backward += (2 * s.q() * s.e() + 2 * s.rows() * s.w()) * given;
    }
    if (p + distance < P) {  // helping
      const int64_t taken = s.T(p + distance) / part;
      sent.forward += (s.q() + s.rows()) * s.w() * taken;
      sent.backward += s.q() * s.w() * taken;
    }
  };
  for (int t = 1; t <= halves / 2; ++t) help(P - t, 1);
  if (halves % 2 == 1) help(last, 2);
  return sent;
}

/// The gather and the reduce-scatter; and what the mirror ranks swap, rank p and P-1-p.
inline SentBytes allgather_bytes(const ByteShape& s, int p) {
  const int P = s.ranks(), mirror = P - 1 - p;
  const int64_t gather = s.kv() * s.e() * s.T(p) * (P - 1);
  SentBytes sent{gather, gather + s.kv() * s.w() * (s.N() - s.T(p))};
  if (!s.causal || mirror == p) return sent;
  const int64_t given = s.T(p) - s.T(p) / 2, taken = s.T(mirror) - s.T(mirror) / 2;
  sent.forward += s.q() * s.e() * given + (s.q() + s.rows()) * s.w() * taken;
  sent.backward += (2 * s.q() * s.e() + 2 * s.rows() * s.w()) * given + s.q() * s.w() * taken;
  return sent;
}

/// Everything of the own tokens that other ranks' heads need, and of the own heads that belongs to
/// other ranks' tokens. A kv head that several ranks read counts for each.
inline SentBytes ulysses_bytes(const ByteShape& s, int p) {
  const int P = s.ranks();
  const Cuts heads = Cuts::even(s.shape.heads, P);
  const int64_t group = s.shape.heads / s.shape.kv_heads, token = s.shape.batch * s.shape.width;
  const auto kv_heads = [&](int rank) {
    std::set<int64_t> read;
    for (int64_t h = heads.begin(rank); h < heads.end(rank); ++h) read.insert(h / group);
    return static_cast<int64_t>(read.size());
  };
  SentBytes sent;
  for (int r = 0; r < P; ++r) {
    if (r == p) continue;
    const int64_t theirs = heads.size(r), own = heads.size(p), numbers = s.shape.batch;
    sent.forward += (theirs + 2 * kv_heads(r)) * token * s.e() * s.T(p);
    sent.forward += own * (token + numbers) * s.w() * s.T(r);
    sent.backward += (2 * theirs + 2 * kv_heads(r)) * token * s.e() * s.T(p);
    sent.backward += 2 * theirs * numbers * s.w() * s.T(p);
    sent.backward += (own + 2 * kv_heads(p)) * token * s.w() * s.T(r);
  }
  return sent;
}

}  // namespace weft
