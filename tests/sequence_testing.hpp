// Runs one sequence strategy on the ranks of one process, on pieces of a whole problem.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "parallel/comm/threads.hpp"
#include "parallel/sequence/strategies.hpp"
#include "tests/oracle.hpp"
#include "tests/placed.hpp"

namespace weft {

/// What one rank of a test needs to call a layer or a strategy: mesh, stream, scratch, ledgers.
class TestRank {
 public:
  TestRank(World& world, const MeshShape& shape, int64_t scratch_bytes = 64 << 20)
      : mesh_(world, shape, {&predicted, &counted}, false),
        compute_(world.make_compute_stream()),
        scratch_("scratch", world.device(), scratch_bytes, compute_.get()),
        state_("state", Device::cpu, 0),
        store_({}, DType::f64, state_),
        context{.mesh = mesh_,
                .compute = *compute_,
                .scratch = scratch_,
                .parameters = store_,
                .dtype = DType::f64,
                .loss_sum = {}} {}

  Ledger predicted, counted;

 private:
  ProcessMesh mesh_;
  std::unique_ptr<Stream> compute_;
  Arena scratch_, state_;
  ParameterStore store_;

 public:
  StepContext context;
};

inline MeshShape sequence_mesh(int ranks) {
  return mesh_along(Axis::sequence, ranks);
}

/// A contiguous copy of tokens [begin, end) of [B, N, ...].
inline Owned tokens_of(const Tensor& whole, int64_t begin, int64_t end) {
  return copy_of(whole.slice(1, begin, end));
}

/// Puts a rank's [B, T, ...] or, with `rows`, [B, H, T] at its place in the whole's values.
void place(std::vector<double>& whole, const Tensor& piece, int64_t tokens, int64_t begin,
           bool rows);

struct StrategyRun {
  AttentionResult result;
  std::vector<std::map<std::string, int64_t>> sent;    // bytes by group, per rank, as counted
  std::vector<int64_t> forward_bytes, backward_bytes;  // on the sequence axis, per rank
  bool ledgers_agree = true;
};

/// Calls a body once a rank, on threads of this process: run_ranks, or another of its kind.
using StartRanks = std::function<void(int ranks, const std::function<void(World&)>& body)>;

/// Forward and backward of `make()` over `cuts`, one thread a rank; outputs are poisoned first.
/// `causal` and `window` say what the problem's intervals are. Without `start` on the CPU.
StrategyRun run_strategy(const std::function<std::unique_ptr<AttentionParallel>()>& make,
                         const AttentionProblem& p, const Cuts& cuts, bool causal = true,
                         int64_t window = 0, const StartRanks& start = {});

}  // namespace weft
