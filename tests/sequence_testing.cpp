#include "tests/sequence_testing.hpp"

namespace weft {

void place(std::vector<double>& whole, const Tensor& piece, int64_t tokens, int64_t begin,
           bool rows) {
  const std::vector<double> part = values(piece);
  // As [outer, T, inner] inside [outer, N, inner].
  const int64_t own = piece.dim(rows ? 2 : 1);
  const int64_t outer = rows ? piece.dim(0) * piece.dim(1) : piece.dim(0);
  const int64_t inner = rows ? 1 : piece.dim(2) * piece.dim(3);
  for (int64_t o = 0; o < outer; ++o) {
    std::copy_n(part.begin() + o * own * inner, own * inner,
                whole.begin() + (o * tokens + begin) * inner);
  }
}

StrategyRun run_strategy(const std::function<std::unique_ptr<AttentionParallel>()>& make,
                         const AttentionProblem& p, const Cuts& cuts, bool causal, int64_t window,
                         const StartRanks& start) {
  const auto [B, H, G, D] = p.shape;
  const int64_t N = cuts.total();
  const DType dtype = p.q.view().dtype, wide = accumulator_of(dtype);
  StrategyRun run;
  AttentionResult& whole = run.result;
  for (auto* v : {&whole.out, &whole.dq}) v->resize(B * N * H * D);
  for (auto* v : {&whole.dk, &whole.dv}) v->resize(B * N * G * D);
  whole.lse.resize(B * H * N);
  run.sent.resize(cuts.pieces());
  run.forward_bytes.resize(cuts.pieces());
  run.backward_bytes.resize(cuts.pieces());
  std::mutex mutex;

  const auto body = [&](World& world) {
    TestRank rank(world, sequence_mesh(cuts.pieces()));
    Stream& stream = rank.context.compute;
    const int64_t begin = cuts.begin(world.rank()), end = cuts.end(world.rank()), T = end - begin;
    const auto piece = [&](const Owned& whole_tensor) {
      return Placed(tokens_of(whole_tensor, begin, end), stream);
    };
    const auto output = [&](const std::vector<int64_t>& dims) {
      return Placed(Owned(wide, dims), stream);
    };
    const Placed q = piece(p.q), k = piece(p.k), v = piece(p.v), dout = piece(p.dout);
    const Placed from = piece(p.keys.begin), to = piece(p.keys.end);
    const Placed all_from(copy_of(p.keys.begin), stream), all_to(copy_of(p.keys.end), stream);
    const Placed out = output({B, T, H, D}), lse = output({B, H, T}), dq = output({B, T, H, D});
    const Placed dk = output({B, T, G, D}), dv = output({B, T, G, D});
    const AttentionShard shard{.q = q,
                               .k = k,
                               .v = v,
                               .key_begin = from,
                               .key_end = to,
                               .cuts = cuts,
                               .scale = p.scale,
                               .causal = causal,
                               .window = window,
                               .layer = 0,
                               .micro_batch = 0,
                               .all_key_begin = all_from,
                               .all_key_end = all_to};
    const auto strategy = make();
    strategy->forward(shard, out, lse, rank.context);
    strategy->backward(shard, out, lse, dout, {.dq = dq, .dk = dk, .dv = dv}, rank.context);

    const std::lock_guard lock(mutex);
    place(whole.out, out.on_host(stream), N, begin, false);
    place(whole.lse, lse.on_host(stream), N, begin, true);
    place(whole.dq, dq.on_host(stream), N, begin, false);
    place(whole.dk, dk.on_host(stream), N, begin, false);
    place(whole.dv, dv.on_host(stream), N, begin, false);
    run.sent[world.rank()] = rank.counted.by_group();
    for (const auto& [key, bytes] : rank.counted.entries()) {
      (key.tag.pass == Tag::Pass::forward ? run.forward_bytes : run.backward_bytes)[world.rank()] +=
          bytes;
    }
    const auto booked = rank.predicted.entries();
    for (const auto& [key, bytes] : rank.counted.entries()) {
      run.ledgers_agree &= booked.contains(key) && booked.at(key) == bytes;
    }
    for (const auto& [key, bytes] : booked) {
      run.ledgers_agree &= bytes == 0 || rank.counted.entries().contains(key);
    }
  };
  if (start) {
    start(cuts.pieces(), body);
  } else {
    run_ranks(cuts.pieces(), body);
  }
  return run;
}

}  // namespace weft
