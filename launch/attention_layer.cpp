#include "launch/attention_layer.hpp"

#include <cmath>

#include "launch/machine.hpp"
#include "launch/quantity.hpp"
#include "models/set_values.hpp"
#include "src/core/random.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Of q, k, v, dout; then of out, dq, dk, dv.
constexpr std::array<bool, 4> kInputOfKeys{false, true, true, false};
constexpr std::array<bool, 4> kResultOfKeys{false, false, true, true};

FourTensors allocate(const std::array<const char*, 4>& names, const std::array<bool, 4>& of_keys,
                     const AttentionSetting& s, int64_t tokens, DType dtype, Arena& arena) {
  FourTensors tensors;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t heads = of_keys[i] ? s.kv_heads : s.heads;
    tensors[i] = arena.allocate(names[i], dtype, {s.batch, tokens, heads, s.head_dim});
  }
  return tensors;
}
FourTensors allocate_inputs(const AttentionSetting& s, int64_t tokens, Arena& arena) {
  return allocate(kAttentionInputs, kInputOfKeys, s, tokens, s.dtype, arena);
}
FourTensors allocate_results(const AttentionSetting& s, int64_t tokens, Arena& arena) {
  return allocate(kAttentionResults, kResultOfKeys, s, tokens, accumulator_of(s.dtype), arena);
}

/// What the whole takes of the host, which has it.
int64_t whole_bytes(const AttentionSetting& setting, bool with_results) {
  Arena plan("plan", Device::meta, 0);
  allocate_inputs(setting, setting.cuts.total(), plan);
  if (with_results) allocate_results(setting, setting.cuts.total(), plan);
  require_host_memory(plan.peak(), "the tensors of the whole sequence");
  return plan.peak();
}

/// `shard`: tokens of `whole` from `begin` on, both on the host.
Squares compare(const Tensor& shard, const Tensor& whole, int64_t begin) {
  Squares sums;
  visit_float(shard.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t b = 0; b < shard.dim(0); ++b) {
      const T* const got = shard.slice(0, b, b + 1).as<T>();
      const T* const expected =
          whole.slice(0, b, b + 1).slice(1, begin, begin + shard.dim(1)).as<T>();
      for (int64_t i = 0; i < shard.dim(1) * shard.stride[1]; ++i) {
        const double reference = expected[i], difference = got[i] - reference;
        sums.difference += difference * difference;
        sums.reference += reference * reference;
      }
    }
  });
  return sums;
}

}  // namespace

void require_host_memory(int64_t bytes, const char* whose) {
  const int64_t limit = this_machine().memory_bytes / 10 * 9;
  WEFT_REQUIRE(bytes <= limit, ExitCode::memory, whose, " take ", gib_text(bytes),
               " of host memory, the limit is ", gib_text(limit));
}

WholeAttention::WholeAttention(const AttentionSetting& setting, uint64_t seed, bool with_results)
    : memory_("the whole sequence", Device::cpu, whole_bytes(setting, with_results)),
      inputs_(allocate_inputs(setting, setting.cuts.total(), memory_)) {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const RandomStream random(seed, concat("attention ", kAttentionInputs[i]));
    write_values(inputs_[i], [&](int64_t n) { return random.normal(n); });
  }
  if (with_results) results_ = allocate_results(setting, setting.cuts.total(), memory_);
}

RankAttention::RankAttention(const AttentionStrategy& strategy, const AttentionSetting& setting,
                             bool deterministic, Device target, World& world, int64_t bytes)
    : setting_(setting),
      compute_(world.make_compute_stream()),
      memory_("attention", world.device(), bytes, compute_.get()),
      mesh_(world, mesh_along(Axis::sequence, world.size()), {&booked_, &counted_},
            /*strict=*/false),
      no_parameters_({}, setting.dtype, memory_),
      context_{.mesh = mesh_,
               .compute = *compute_,
               .scratch = memory_,
               .parameters = no_parameters_,
               .dtype = setting.dtype,
               .loss_sum = {},
               .deterministic = deterministic,
               .planned = target},
      first_(setting.cuts.begin(world.rank())),
      tokens_(setting.cuts.size(world.rank())),
      inputs_(allocate_inputs(setting, tokens_, memory_)),
      results_(allocate_results(setting, tokens_, memory_)),
      lse_(memory_.allocate("lse", results_[0].dtype, {setting.batch, setting.heads, tokens_})),
      shard_(make_shard(strategy, deterministic)),
      attention_(strategy.make()) {}

AttentionShard RankAttention::make_shard(const AttentionStrategy& strategy, bool deterministic) {
  const auto intervals = [&](const char* name, int64_t tokens) {
    return memory_.allocate(name, DType::i64, {setting_.batch, tokens});
  };
  AttentionShard shard{.q = inputs_[0],
                       .k = inputs_[1],
                       .v = inputs_[2],
                       .key_begin = intervals("key begin", tokens_),
                       .key_end = intervals("key end", tokens_),
                       .cuts = setting_.cuts,
                       .scale = 1 / std::sqrt(static_cast<double>(setting_.head_dim)),
                       .causal = setting_.causal,
                       .one_document = true,
                       .deterministic = deterministic,
                       .layer = 0,
                       .micro_batch = 0};
  if (strategy.reads_all_intervals) {
    shard.all_key_begin = intervals("all key begin", setting_.cuts.total());
    shard.all_key_end = intervals("all key end", setting_.cuts.total());
  }
  return shard;
}

void RankAttention::load(const WholeAttention& whole) {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    write_on_host(inputs_[i], *compute_, [&](const Tensor& host) {
      cpu::copy({.y = host, .x = whole.inputs()[i].slice(1, first_, first_ + tokens_)});
    });
  }
  write_intervals(shard_.key_begin, shard_.key_end, first_);
  if (shard_.all_key_begin) write_intervals(shard_.all_key_begin, shard_.all_key_end, 0);
}

/// Of queries from `first` on.
void RankAttention::write_intervals(const Tensor& begin, const Tensor& end, int64_t first) {
  const auto write = [&](const Tensor& t, const auto& key) {
    write_on_host(t, *compute_, [&](const Tensor& host) {
      for (int64_t i = 0; i < host.numel(); ++i) host.as<int64_t>()[i] = key(i % host.dim(1));
    });
  };
  write(begin, [](int64_t) { return 0; });
  write(end, [&](int64_t t) { return setting_.causal ? first + t + 1 : setting_.cuts.total(); });
}

void RankAttention::forward() {
  attention_->forward(shard_, results_[0], lse_, context_);
}

void RankAttention::backward() {
  const AttentionGradients gradients{.dq = results_[1], .dk = results_[2], .dv = results_[3]};
  attention_->backward(shard_, results_[0], lse_, inputs_[3], gradients, context_);
}

RankAttention::Seconds RankAttention::run() {
  compute_->wait(mesh_.along(Axis::sequence).barrier(*compute_));
  compute_->record().wait();
  booked_.clear();
  counted_.clear();
  const auto start = Clock::now();
  forward();
  compute_->enqueue([this] { forward_end_ = Clock::now(); });
  backward();
  compute_->enqueue([this] { end_ = Clock::now(); });
  compute_->record().wait();
  const auto since_start = [&](Clock::time_point end) {
    return std::chrono::duration<double>(end - start).count();
  };
  return {since_start(forward_end_), since_start(end_)};
}

std::array<Squares, 4> RankAttention::compare_with(const WholeAttention& whole) {
  std::array<Squares, 4> squares;
  for (size_t i = 0; i < results_.size(); ++i) {
    const HostCopy host(results_[i], *compute_);
    squares[i] = compare(host.tensor(), whole.results()[i], first_);
  }
  return squares;
}

void RankAttention::store(const WholeAttention& whole) {
  for (size_t i = 0; i < results_.size(); ++i) {
    const HostCopy host(results_[i], *compute_);
    cpu::copy({.y = whole.results()[i], .x = host.tensor()});
  }
}

}  // namespace weft
