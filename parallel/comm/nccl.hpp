// Ranks that have a GPU each and talk over NCCL.
#pragma once

#include <memory>

#include "parallel/comm/backend.hpp"

namespace weft {

/// Whether this build has NCCL.
bool has_nccl();

/// The ranks of `setup`, on the CPU, each with GPU `gpu` of its own: processes of MPI, or threads.
/// `setup` carries the identities of the communicators and compares fingerprints; it must outlive
/// the result. Making a group is a collective call of its members and makes one communicator.
///
/// Pieces of one size are gathered and summed by NCCL's own collectives, whose sums add in an order
/// of their own (one order for a given group, size and version); everything else is made of
/// exchanges, with the order of the other transports. An all_reduce is always NCCL's.
///
/// A thread watches the transfers of the rank. When NCCL reports an error, a peer has ended the job
/// or a transfer takes longer than wait_deadline() after it could start, it aborts the
/// communicator, and every event behind the transfer hands the Error to its waiter. Making a group
/// has no deadline but NCCL's own.
///
/// NVLink multicast stays off, whatever the environment says. Throws Error(usage) in a build
/// without NCCL.
std::unique_ptr<World> make_nccl_world(World& setup, int gpu);

}  // namespace weft
