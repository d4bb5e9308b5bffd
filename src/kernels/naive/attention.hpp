// Softmax attention as its equations say it, in f64: no tiles, no merging, nothing saved. What
// every kernel and every strategy is held against.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::naive {

struct AttentionInputs {
  int64_t batch, queries, keys, heads, kv_heads, width;  // B, Tq, Tk, H, G, D
  double scale;
  std::vector<double> q;                    // [B, Tq, H, D]
  std::vector<double> k, v;                 // [B, Tk, G, D]
  std::vector<double> dout;                 // [B, Tq, H, D]
  std::vector<int64_t> key_begin, key_end;  // [B, Tq]: query i sees keys [key_begin, key_end)
};

struct AttentionResult {
  std::vector<double> out;     // [B, Tq, H, D]
  std::vector<double> lse;     // [B, H, Tq]
  std::vector<double> dq;      // [B, Tq, H, D]
  std::vector<double> dk, dv;  // [B, Tk, G, D]
};

/// A query that sees no key has out 0 and lse -inf.
AttentionResult attention(const AttentionInputs& in);

}  // namespace weft::naive
