// The collectives over MPI: mpirun -n P collectives_mpi. With "mismatch" the last rank enters
// another operation than the rest, which must end the job with 86.
#include <cstdio>
#include <string_view>

#include "parallel/comm/mpi.hpp"
#include "parallel/mesh.hpp"
#include "tests/collectives_check.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

void enter_different_operations(World& world) {
  MeshShape shape;
  shape.along(Axis::sequence) = world.size();
  ProcessMesh mesh(world, shape, {}, /*strict=*/true);
  Communicator& comm = mesh.along(Axis::sequence);
  const auto stream = make_inline_stream();
  const Owned buffer = zeros(DType::f64, {8}), scratch = zeros(DType::f64, {8});
  stream->wait(comm.rank() + 1 == comm.size()
                   ? comm.all_gather(buffer, Cuts::even(8, comm.size()), {}, *stream)
                   : comm.all_reduce(buffer, scratch, {}, *stream));
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  weft::MpiSession session;
  try {
    if (argc > 1 && std::string_view(argv[1]) == "mismatch") {
      weft::enter_different_operations(session.world());
    } else {
      weft::check_collectives(session.world());
    }
  } catch (const weft::Error& error) {
    std::fprintf(stderr, "rank %d: %s\n", session.world().rank(), error.what());
    weft::MpiSession::abort(static_cast<int>(error.code()));
  }
  return 0;
}
