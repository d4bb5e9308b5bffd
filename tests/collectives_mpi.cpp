// The collectives over MPI: mpirun -n P collectives_mpi.
#include <cstdio>

#include "parallel/comm/mpi.hpp"
#include "tests/collectives_check.hpp"

int main() {
  weft::MpiSession session;
  try {
    weft::check_collectives(session.world());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", session.world().rank(), error.what());
    weft::MpiSession::abort(1);
  }
  return 0;
}
