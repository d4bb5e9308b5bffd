#include "tests/state_scan_testing.hpp"

#include <cmath>
#include <optional>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Entries of a transition: of the whole tensor.
int64_t entries(TransitionKind kind, const ScanShape& s) {
  switch (kind) {
    case TransitionKind::none:
      return 0;
    case TransitionKind::scalar:
      return s.states();
    case TransitionKind::vector:
      return s.states() * s.K;
    case TransitionKind::dense:
      return s.states() * s.K * s.K;
  }
  return 0;
}

Owned transition_of(int rank, TransitionKind kind, const Decay& decay, DType dtype,
                    const ScanShape& s) {
  const bool identity = decay.identity(rank);
  std::vector<double> entry(entries(kind, s));
  if (kind == TransitionKind::none) return {};
  if (kind == TransitionKind::dense) {
    const auto noise = normal_values(std::ssize(entry), concat("transition ", rank), 0.2);
    for (int64_t i = 0; i < std::ssize(entry); ++i) {
      const double one = i / s.K % s.K == i % s.K ? 1 : 0;
      entry[i] = identity ? one : decay.factor(rank, i / s.K) * (one + noise[i]);
    }
    return from_values(dtype, {s.batch, s.heads, s.K, s.K}, entry);
  }
  for (int64_t i = 0; i < std::ssize(entry); ++i) {
    // Rounded to f32, so that one reference serves both types.
    entry[i] = identity ? 0 : static_cast<float>(std::log(decay.factor(rank, i)));
  }
  return kind == TransitionKind::scalar ? from_values(dtype, {s.batch, s.heads}, entry)
                                        : from_values(dtype, {s.batch, s.heads, s.K}, entry);
}

/// A . S, or A^T . S.
std::vector<double> applied(const ScanProblem& p, int rank, const std::vector<double>& state,
                            bool transposed) {
  const auto [B, H, K, V] = p.shape;
  if (p.kind == TransitionKind::none) return state;
  const std::vector<double> a = values(p.transitions[rank]);
  std::vector<double> out(state.size());
  for (int64_t r = 0; r < B * H; ++r) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < K; ++j) {
        double factor = j == k ? 1 : 0;
        if (p.kind == TransitionKind::scalar) factor *= std::exp(a[r]);
        if (p.kind == TransitionKind::vector) factor *= std::exp(a[r * K + k]);
        if (p.kind == TransitionKind::dense) {
          factor = transposed ? a[(r * K + j) * K + k] : a[(r * K + k) * K + j];
        }
        for (int64_t v = 0; v < V; ++v) {
          out[(r * K + k) * V + v] += factor * state[(r * K + j) * V + v];
        }
      }
    }
  }
  return out;
}

std::vector<double> plus(std::vector<double> a, const std::vector<double>& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

}  // namespace

void use_scratch(StepContext& ctx) {
  const Scope scope(ctx.scratch);
  fill({.y = ctx.scratch.allocate("meanwhile", DType::f64, {512}), .value = NAN}, ctx.compute);
}

bool same_entries(const Ledger& predicted, const Ledger& counted) {
  const auto booked = predicted.entries(), moved = counted.entries();
  bool same = true;
  for (const auto& [key, bytes] : moved) same &= booked.contains(key) && booked.at(key) == bytes;
  for (const auto& [key, bytes] : booked) same &= bytes == 0 || moved.contains(key);
  return same;
}

const char* name(TransitionKind kind) {
  constexpr const char* kNames[] = {"none", "scalar", "vector", "dense"};
  return kNames[static_cast<int>(kind)];
}

/// Between 0.6 and 1, another for every entry.
const Decay kMixedDecay{"mixed", [](int rank, int64_t i) {
                          return 0.6 + 0.4 * static_cast<double>((7 * i + 3 * rank) % 10) / 10;
                        }};

ScanProblem scan_problem(int ranks, TransitionKind kind, const Decay& decay, DType dtype,
                         const ScanShape& shape) {
  ScanProblem p{ranks, kind, shape, dtype, {}, {}, {}};
  const std::vector<int64_t> dims = {shape.batch, shape.heads, shape.K, shape.V};
  for (int rank = 0; rank < ranks; ++rank) {
    p.transitions.push_back(transition_of(rank, kind, decay, dtype, shape));
    const bool identity = decay.identity(rank);
    p.states.push_back(identity ? zeros(dtype, dims)
                                : normals(dtype, dims, concat("state ", rank)));
    p.costates.push_back(identity ? zeros(dtype, dims)
                                  : normals(dtype, dims, concat("costate ", rank)));
  }
  return p;
}

EnteringStates naive_prefix(const ScanProblem& p) {
  EnteringStates entering(p.ranks);
  entering[0].resize(p.states[0].view().numel());
  for (int rank = 1; rank < p.ranks; ++rank) {
    entering[rank] =
        plus(applied(p, rank - 1, entering[rank - 1], false), values(p.states[rank - 1]));
  }
  return entering;
}

EnteringStates naive_suffix(const ScanProblem& p) {
  EnteringStates entering(p.ranks);
  entering[p.ranks - 1].resize(p.states[0].view().numel());
  for (int rank = p.ranks - 2; rank >= 0; --rank) {
    entering[rank] =
        plus(applied(p, rank + 1, entering[rank + 1], true), values(p.costates[rank + 1]));
  }
  return entering;
}

ScanRun run_scan(const MakeScan& make, const ScanProblem& p, const StartRanks& start) {
  ScanRun run{EnteringStates(p.ranks), EnteringStates(p.ranks), std::vector<int64_t>(p.ranks),
              std::vector<int64_t>(p.ranks)};
  std::mutex mutex;
  const auto body = [&](World& world) {
    TestRank rank(world, sequence_mesh(p.ranks), 1 << 20);
    StepContext& ctx = rank.context;
    const int me = ctx.mesh.at(Axis::sequence);
    const auto [B, H, K, V] = p.shape;
    const Placed prefix(Owned(p.dtype, {B, H, K, V}), ctx.compute);
    const Placed suffix(Owned(p.dtype, {B, H, K, V}), ctx.compute);
    std::optional<Placed> transition;
    if (p.kind != TransitionKind::none) transition.emplace(copy_of(p.transitions[me]), ctx.compute);
    const auto scan = make();
    const auto go = [&](const Owned& values_of_state, const Placed& entering,
                        ScanDirection direction, Tag::Pass pass) {
      const Placed state(copy_of(values_of_state), ctx.compute);
      const Scope scope(ctx.scratch);
      PendingScan pending = scan->begin({transition ? transition->view() : Tensor(), state},
                                        entering, direction, state_tag(0, 0, pass), ctx);
      use_scratch(ctx);
      const Tensor found = pending.finish();
      WEFT_CHECK(found.data == entering.view().data, "the entering state is somewhere else");
    };
    go(p.states[me], prefix, ScanDirection::prefix, Tag::Pass::forward);
    go(p.costates[me], suffix, ScanDirection::suffix, Tag::Pass::backward);

    const std::lock_guard lock(mutex);
    run.prefix[me] = values(prefix.on_host(ctx.compute));
    run.suffix[me] = values(suffix.on_host(ctx.compute));
    for (const auto& [key, bytes] : rank.counted.entries()) {
      WEFT_CHECK(key.tag.purpose == Tag::Purpose::state, text(key.tag));
      (key.tag.pass == Tag::Pass::forward ? run.prefix_bytes : run.suffix_bytes)[me] += bytes;
    }
    run.ledgers_agree &= same_entries(rank.predicted, rank.counted);
  };
  if (start) {
    start(p.ranks, body);
  } else {
    run_ranks(p.ranks, body);
  }
  return run;
}

std::vector<ScanVariant> scans_of_the_table() {
  std::vector<ScanVariant> all;
  for (const StateScanKind& kind : state_scans()) {
    all.push_back({kind.name, [&kind] { return kind.make({}); }});
  }
  return all;
}

std::vector<ScanVariant> scan_variants() {
  std::vector<ScanVariant> all = scans_of_the_table();
  for (const int64_t blocks : {1, 2, 3, 6, 8, 42, 1000}) {  // 6 states, 42 columns
    all.push_back({concat("zeco_", blocks, "_blocks"),
                   [blocks] { return make_zeco_scan({.zeco_blocks = blocks}); }});
  }
  for (const int group : {1, 2, 3, 100}) {
    all.push_back({concat("two_level_of_", group),
                   [group] { return make_two_level_scan({.group = group}); }});
  }
  return all;
}

double error_of(const ScanRun& run, const ScanProblem& p) {
  const EnteringStates prefix = naive_prefix(p), suffix = naive_suffix(p);
  double worst = 0;
  for (int rank = 0; rank < p.ranks; ++rank) {
    worst = std::max({worst, relative_rms(run.prefix[rank], prefix[rank]),
                      relative_rms(run.suffix[rank], suffix[rank])});
  }
  return worst;
}

}  // namespace weft
