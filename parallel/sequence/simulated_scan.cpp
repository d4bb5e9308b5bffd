#include "parallel/sequence/simulated_scan.hpp"

#include <initializer_list>

#include "parallel/sequence/mix_states.hpp"

namespace weft {
namespace {

Tensor shape_of(DType dtype, std::initializer_list<int64_t> dims) {
  return Tensor::view(nullptr, dtype, Device::meta, {dims.begin(), dims.size()});
}

Tensor state_of(const ScanSetting& s) {
  return shape_of(accumulator_of(s.dtype), {s.batch, s.heads, s.key_dim, s.value_dim});
}

Tensor transition_of(const ScanSetting& s) {
  const DType dtype = accumulator_of(s.dtype);
  switch (s.kind) {
    case StateKind::none:
      return s.scans_alone() ? Tensor{} : shape_of(dtype, {s.batch, s.heads});
    case StateKind::fixed:
    case StateKind::scalar:
      return shape_of(dtype, {s.batch, s.heads});
    case StateKind::vector:
      return shape_of(dtype, {s.batch, s.heads, s.key_dim});
    case StateKind::delta:
      return shape_of(dtype, {s.batch, s.heads, s.key_dim, s.key_dim});
  }
  return {};
}

/// A layer's surroundings on one rank.
struct RankOnShapes {
  RankOnShapes(const SimulatedRank& rank, DType dtype, Ledgers ledgers)
      : mesh(rank.world, mesh_along(Axis::sequence, rank.world.size()), ledgers, /*strict=*/false),
        scratch("scratch", Device::meta, 0),
        slab("parameters", Device::meta, 0),
        no_parameters({}, dtype, slab),
        ctx{.mesh = mesh,
            .compute = rank.compute,
            .scratch = scratch,
            .parameters = no_parameters,
            .dtype = dtype,
            .loss_sum = {}} {}

  ProcessMesh mesh;
  Arena scratch, slab;
  ParameterStore no_parameters;
  StepContext ctx;
};

void scan_alone(StateScan& scan, const ScanSetting& s, ScanDirection direction, Tag::Pass pass,
                StepContext& ctx) {
  const Scope scope(ctx.scratch);
  scan.begin({transition_of(s), state_of(s)}, state_of(s), direction, state_tag(0, 0, pass), ctx)
      .finish();
}

/// One rank's shard of the layer.
class ShardOnShapes {
 public:
  ShardOnShapes(const ScanSetting& s, int64_t tokens)
      : entering_(state_of(s)),
        out_(rows(accumulator_of(s.dtype), s, tokens, s.value_dim)),
        dout_(rows(s.dtype, s, tokens, s.value_dim)) {
    const DType wide = accumulator_of(s.dtype);
    const Tensor one_a_token = shape_of(wide, {s.batch, tokens, s.heads});
    shard_.q = rows(s.dtype, s, tokens, s.key_dim);
    shard_.tokens = {.kind = s.kind,
                     .k = shard_.q,
                     .v = dout_,
                     .log_decay = {},
                     .beta = {},
                     .positions = shape_of(DType::i64, {s.batch, tokens})};
    gradients_.dq = gradients_.dk = rows(wide, s, tokens, s.key_dim);
    gradients_.dv = out_;
    switch (s.kind) {
      case StateKind::none:
        break;
      case StateKind::fixed:
        shard_.tokens.log_decay = shape_of(wide, {s.heads});
        break;
      case StateKind::delta:
        shard_.tokens.beta = gradients_.dbeta = one_a_token;
        [[fallthrough]];
      case StateKind::scalar:
        shard_.tokens.log_decay = gradients_.dlog_decay = one_a_token;
        break;
      case StateKind::vector:
        shard_.tokens.log_decay = gradients_.dlog_decay = gradients_.dk;
        break;
    }
  }

  void forward(StateScan* scan, StepContext& ctx) const {
    mix_states(shard_, out_, entering_, scan, ctx);
  }
  void backward(StateScan& scan, StepContext& ctx) const {
    mix_states_backward(shard_, entering_, dout_, gradients_, /*dh0=*/{}, scan, ctx);
  }

 private:
  static Tensor rows(DType dtype, const ScanSetting& s, int64_t tokens, int64_t width) {
    return shape_of(dtype, {s.batch, tokens, s.heads, width});
  }

  Tensor entering_, out_, dout_;
  StateShard shard_;
  StateGradients gradients_;
};

}  // namespace

int64_t ScanSetting::state_bytes() const {
  return state_of(*this).nbytes();
}

int64_t ScanSetting::transition_bytes() const {
  const Tensor transition = transition_of(*this);
  return transition ? transition.nbytes() : 0;
}

SimulatedProgram scan_program(const StateScanKind& kind, const ScanSetting& setting) {
  const auto run = [kind, setting](const SimulatedRank& rank, Ledgers ledgers,
                                   const std::function<void()>& forward_ended) {
    RankOnShapes here(rank, setting.dtype, ledgers);
    const std::unique_ptr<StateScan> scan = kind.make(setting.options);
    if (setting.scans_alone()) {
      scan_alone(*scan, setting, ScanDirection::prefix, Tag::Pass::forward, here.ctx);
      forward_ended();
      scan_alone(*scan, setting, ScanDirection::suffix, Tag::Pass::backward, here.ctx);
      return;
    }
    const ShardOnShapes shard(setting, setting.cuts.size(rank.world.rank()));
    shard.forward(scan.get(), here.ctx);
    forward_ended();
    shard.backward(*scan, here.ctx);
  };
  return {.ranks = setting.cuts.pieces(), .run = run};
}

SimulatedProgram one_shard_program(const ScanSetting& setting) {
  const auto run = [setting](const SimulatedRank& rank, Ledgers ledgers,
                             const std::function<void()>& forward_ended) {
    RankOnShapes here(rank, setting.dtype, ledgers);
    const ShardOnShapes shard(setting, setting.cuts.largest());
    shard.forward(nullptr, here.ctx);
    forward_ended();
    shard.backward(*make_lasp_scan({}), here.ctx);  // of one rank: not called
  };
  return {.ranks = 1, .run = run};
}

}  // namespace weft
