// What a shard does to the state of a linear recurrence that crosses it: S_out = A . S_in + local,
// A the shard's transition. Every scan over the sequence axis calls this one kernel.
//
// A transition is one of four kinds, told apart by its dims:
//
//   absent      1: nothing decays
//   [R]         one log decay a state: A = exp(log) times the identity
//   [R, K]      one log decay a row: A = diag(exp(log))
//   [R, K, K]   dense, row-major: (A . S)[k, v] = sum over j of A[k, j] S[j, v]
//
// Diagonal transitions are logs wherever they are kept, composed or sent: a product of many decays
// is a sum that does not underflow, the identity is 0, and a document that starts is -inf, whose
// exponential is 0 exactly.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// out = A . entering + local for R = B H states. What a transition's 0 meets is not read into the
/// sum, whatever it is, so that nothing of one document reaches the next.
///
/// An element is local + A[k, 0] entering[0, v] + A[k, 1] entering[1, v] + ..., added in this order
/// and each by one fused multiply-add: cutting R or V into blocks changes no bit.
struct StateCombineArgs {
  Tensor out;               // [R, K, V] f32 or f64; the innermost stride is 1; may be `local`
  Tensor transition;        // as above, same type, contiguous
  Tensor entering;          // [R, K, V]; shares no byte with `out`
  Tensor local = {};        // [R, K, V]; absent: 0
  bool transposed = false;  // A^T instead of A, for the gradient's way back; differs where dense
};
Cost cost(const StateCombineArgs& args);
void state_combine(const StateCombineArgs& args, Stream& stream);

namespace cpu {
void state_combine(const StateCombineArgs& args);
}  // namespace cpu

namespace cuda {
void state_combine(const StateCombineArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
