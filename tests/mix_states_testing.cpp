#include "tests/mix_states_testing.hpp"

namespace weft {

using Inputs = naive::StateMixerInputs;

Inputs sequence_problem(StateKind kind, int64_t tokens, const std::vector<int64_t>& starts) {
  Inputs in = mixer_problem(kind, {.tokens = tokens});
  in.h0.assign(in.h0.size(), 0.0);
  in.dhT.assign(in.dhT.size(), 0.0);
  set_documents(in, starts);
  return in;
}

// ---- MixerShard

MixerShard::MixerShard(const Inputs& part, DType dtype, Stream& stream)
    : keys_{part.batch, part.tokens, part.heads, part.key_dim},
      values_{part.batch, part.tokens, part.heads, part.value_dim},
      gates_{part.batch, part.tokens, part.heads},
      decays_(log_decay_shape(part)),
      state_{part.batch, part.heads, part.key_dim, part.value_dim},
      kind_(part.kind),
      scale_(part.scale),
      dtype_(dtype),
      stream_(stream),
      q_(input(keys_, part.q)),
      k_(input(keys_, part.k)),
      v_(input(values_, part.v)),
      positions_(from_values(DType::i64, {part.batch, part.tokens},
                             {part.positions.begin(), part.positions.end()}),
                 stream),
      dout(input(values_, part.dout)),
      out(output(values_)),
      entering(output(state_)),
      dh0(output(state_)),
      dq(output(keys_)),
      dk(output(keys_)),
      dv(output(values_)) {
  if (kind_ != StateKind::none) log_decay_.emplace(input(decays_, part.log_decay));
  if (kind_ != StateKind::none && kind_ != StateKind::fixed) dlog_decay.emplace(output(decays_));
  if (kind_ == StateKind::delta) {
    beta_.emplace(input(gates_, part.beta));
    dbeta.emplace(output(gates_));
  }
}

Placed MixerShard::input(const std::vector<int64_t>& shape,
                         const std::vector<double>& values) const {
  return Placed(from_values(dtype_, shape, values), stream_);
}

Placed MixerShard::output(const std::vector<int64_t>& shape) const {
  return Placed(Owned(accumulator_of(dtype_), shape), stream_);
}

StateShard MixerShard::shard() const {
  const auto absent_or = [](const std::optional<Placed>& t) { return t ? t->view() : Tensor(); };
  return {.tokens = {.kind = kind_,
                     .k = k_,
                     .v = v_,
                     .log_decay = absent_or(log_decay_),
                     .beta = absent_or(beta_),
                     .positions = positions_},
          .q = q_,
          .scale = scale_};
}

StateGradients MixerShard::gradients() const {
  return {.dq = dq,
          .dk = dk,
          .dv = dv,
          .dlog_decay = dlog_decay ? dlog_decay->view() : Tensor(),
          .dbeta = dbeta ? dbeta->view() : Tensor()};
}

// ---- run_mix

namespace {

/// Puts the rank's tokens at their place in the whole's.
void gather(naive::StateMixerResult& whole, const MixerShard& mine, int64_t tokens, int64_t begin,
            Stream& stream) {
  const auto put = [&](std::vector<double>& rows, const Placed& piece) {
    const Tensor& t = piece.on_host(stream);
    place(rows, t.ndim == 3 ? t.reshape({t.dim(0), t.dim(1), t.dim(2), 1}) : t, tokens, begin,
          /*rows=*/false);
  };
  put(whole.out, mine.out);
  put(whole.dq, mine.dq);
  put(whole.dk, mine.dk);
  put(whole.dv, mine.dv);
  if (mine.dlog_decay) put(whole.dlog_decay, *mine.dlog_decay);
  if (mine.dbeta) put(whole.dbeta, *mine.dbeta);
}

}  // namespace

MixRun run_mix(const MakeShardScan& make, const Inputs& in, const Cuts& cuts, DType dtype,
               const StartRanks& start) {
  const int ranks = cuts.pieces();
  MixRun run{.result = {},
             .entering = EnteringStates(ranks),
             .dh0 = EnteringStates(ranks),
             .forward_bytes = std::vector<int64_t>(ranks),
             .backward_bytes = std::vector<int64_t>(ranks)};
  naive::StateMixerResult& whole = run.result;
  for (auto* rows : {&whole.out, &whole.dv}) rows->resize(in.v.size());
  for (auto* rows : {&whole.dq, &whole.dk}) rows->resize(in.k.size());
  if (in.kind != StateKind::fixed) whole.dlog_decay.resize(in.log_decay.size());
  whole.dbeta.resize(in.beta.size());
  std::mutex mutex;

  const auto body = [&](World& world) {
    TestRank rank(world, sequence_mesh(ranks), 1 << 20);
    StepContext& ctx = rank.context;
    const int me = ctx.mesh.at(Axis::sequence);
    const int64_t begin = cuts.begin(me);
    const MixerShard mine(cut(in, begin, cuts.end(me)), dtype, ctx.compute);
    const StateShard shard = mine.shard();
    const auto scan = make(shard);
    const auto meanwhile = [&] { use_scratch(ctx); };
    mix_states(shard, mine.out, mine.entering, scan.get(), ctx, meanwhile);
    mix_states_backward(shard, mine.entering, mine.dout, mine.gradients(), mine.dh0, *scan, ctx,
                        meanwhile);

    const std::lock_guard lock(mutex);
    gather(whole, mine, cuts.total(), begin, ctx.compute);
    run.entering[me] = values(mine.entering.on_host(ctx.compute));
    run.dh0[me] = values(mine.dh0.on_host(ctx.compute));
    for (const auto& [key, bytes] : rank.counted.entries()) {
      WEFT_CHECK(key.tag.purpose == Tag::Purpose::state, text(key.tag));
      (key.tag.pass == Tag::Pass::forward ? run.forward_bytes : run.backward_bytes)[me] += bytes;
    }
    run.ledgers_agree &= same_entries(rank.predicted, rank.counted);
  };
  if (start) {
    start(ranks, body);
  } else {
    run_ranks(ranks, body);
  }
  whole.dh0 = run.dh0.front();
  return run;
}

MixRun run_mix_alone(const Inputs& in, DType dtype) {
  return run_mix([](const StateShard&) { return make_lasp_scan({}); }, in, Cuts::even(in.tokens, 1),
                 dtype);
}

}  // namespace weft
