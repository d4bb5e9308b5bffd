// Ranks as MPI processes.
#pragma once

#include <memory>
#include <string>

#include "parallel/comm/backend.hpp"

namespace weft {

/// MPI for the life of the process, with MPI_THREAD_MULTIPLE: every communication stream is a
/// thread that calls it. Construct one, before any group; the destructor finalizes.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  World& world() { return *world_; }

  /// Ends every process of the job with `code`. Does not return.
  [[noreturn]] static void abort(int code);

 private:
  std::unique_ptr<World> world_;
};

/// Whether a launcher (mpirun, srun) started this process as one of several ranks.
bool launched_by_mpi();
/// The rank that the launcher gave this process, known before MPI starts; 0 without one.
int launched_rank();
/// This process's place among those of its host, by the same source: the number of its GPU.
int launched_local_rank();

}  // namespace weft
