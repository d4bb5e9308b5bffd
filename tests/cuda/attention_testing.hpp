// Attention of one block on both sides: the CUDA twin on what its dtype holds, the CPU's in f64.
#pragma once

#include <algorithm>
#include <cmath>

#include "src/kernels/attention.hpp"
#include "tests/cuda/cuda_testing.hpp"

namespace weft {

struct Range {
  int64_t begin, end;
};

struct Sizes {
  int64_t batch, heads, kv_heads, dim, queries, keys;

  AttentionSizes sizes() const { return {batch, queries, keys, heads, kv_heads, dim}; }
};

/// Inputs as numbers; the queries are the last ones of the keys' samples.
struct Problem {
  Sizes s;
  DType dtype;
  Values q, k, v, dout, key_begin, key_end;
  std::optional<BandMask> band = {};

  std::vector<int64_t> q_shape() const { return {s.batch, s.queries, s.heads, s.dim}; }
  std::vector<int64_t> k_shape() const { return {s.batch, s.keys, s.kv_heads, s.dim}; }
  std::vector<int64_t> row_shape() const { return {s.batch, s.heads, s.queries}; }
};

inline Problem problem(DType dtype, const Sizes& s, const KeyIntervals& intervals) {
  const int64_t nq = s.batch * s.queries * s.heads * s.dim,
                nk = s.batch * s.keys * s.kv_heads * s.dim;
  return {s,
          dtype,
          random_values(dtype, nq, "q"),
          random_values(dtype, nk, "k"),
          random_values(dtype, nk, "v"),
          random_values(dtype, nq, "dout"),
          values(intervals.begin),
          values(intervals.end)};
}

inline Problem problem(DType dtype, const Sizes& s, const std::vector<int64_t>& documents,
                       Mask mask) {
  const std::vector<SegmentMap> samples(s.batch, SegmentMap(s.keys, documents, true));
  return problem(dtype, s, key_intervals(samples, s.keys - s.queries, s.keys, mask));
}

struct Result {
  Values out, lse, dq, dk, dv;
};

/// The tensors of one side, GPU or CPU. `Make` makes one from (dtype, shape, values).
template <class Owner, class Make>
struct Side {
  Owner q, k, v, dout, begin, end, out, lse, delta, dq, dk, dv, scratch;

  Side(const Problem& p, DType compute, DType wide, const Make& make)
      : q(make(compute, p.q_shape(), p.q)),
        k(make(compute, p.k_shape(), p.k)),
        v(make(compute, p.k_shape(), p.v)),
        dout(make(compute, p.q_shape(), p.dout)),
        begin(make(DType::i64, {p.s.batch, p.s.queries}, p.key_begin)),
        end(make(DType::i64, {p.s.batch, p.s.queries}, p.key_end)),
        out(make(wide, p.q_shape(), Values(p.q.size(), 0.0))),
        lse(make(wide, p.row_shape(), Values(p.q.size() / p.s.dim, -kInfinity))),
        delta(DType(wide), p.row_shape()),
        dq(make(wide, p.q_shape(), Values(p.q.size(), 0.0))),
        dk(make(wide, p.k_shape(), Values(p.k.size(), 0.0))),
        dv(make(wide, p.k_shape(), Values(p.k.size(), 0.0))),
        scratch(DType::u8, {attention_scratch_bytes(Tensor(q).device, compute, p.s.sizes())}) {}

  AttentionBlock block(const Problem& p, Range keys) const {
    const auto part = [&](const Tensor& t) { return t.slice(1, keys.begin, keys.end); };
    return {q,           part(k), part(v), begin, end, keys.begin, 1 / std::sqrt(double(p.s.dim)),
            /*pairs=*/0, p.band};
  }

  void forward(const Problem& p, const std::vector<Range>& blocks, Stream& stream,
               void (*way)(const AttentionForwardArgs&, Stream&) = &attention_forward) const {
    for (const Range& keys : blocks) way({out, lse, scratch, block(p, keys)}, stream);
  }

  void backward(const Problem& p, const std::vector<Range>& blocks, Stream& stream,
                void (*way)(const AttentionBackwardArgs&, Stream&) = &attention_backward) const {
    attention_delta({delta, out, dout}, stream);
    for (const Range& keys : blocks) {
      const auto part = [&](const Tensor& t) { return t.slice(1, keys.begin, keys.end); };
      way({dq, part(dk), part(dv), scratch, dout, lse, delta, block(p, keys)}, stream);
    }
  }
};

inline Owned make_host(DType dtype, const std::vector<int64_t>& shape, const Values& v) {
  return from_values(dtype, shape, v);
}
inline OnDevice make_device(DType dtype, const std::vector<int64_t>& shape, const Values& v) {
  return {dtype, shape, v};
}
using HostSide = Side<Owned, decltype(&make_host)>;
using DeviceSide = Side<OnDevice, decltype(&make_device)>;

inline Result on_host(const Problem& p, const std::vector<Range>& blocks) {
  const HostSide side(p, DType::f64, DType::f64, &make_host);
  side.forward(p, blocks, cpu_stream());
  side.backward(p, blocks, cpu_stream());
  return {values(side.out), values(side.lse), values(side.dq), values(side.dk), values(side.dv)};
}

inline Result once_on_device(const Problem& p, const std::vector<Range>& blocks) {
  const DeviceSide side(p, p.dtype, DType::f32, &make_device);
  side.forward(p, blocks, cuda_test_stream());
  side.backward(p, blocks, cuda_test_stream());
  return {device_values(side.out), device_values(side.lse), device_values(side.dq),
          device_values(side.dk), device_values(side.dv)};
}

/// With equal bits in two runs.
inline Result on_device(const Problem& p, const std::vector<Range>& blocks) {
  const auto got = twice([&] {
    const Result r = once_on_device(p, blocks);
    return std::vector{r.out, r.lse, r.dq, r.dk, r.dv};
  });
  return {got[0], got[1], got[2], got[3], got[4]};
}

}  // namespace weft
