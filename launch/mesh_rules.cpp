#include "launch/mesh_rules.hpp"

#include "launch/pipeline_stages.hpp"
#include "models/tensor_axis.hpp"

namespace weft {
namespace {

/// " (mpirun -n 4, or -n 8)": the multiples of `product` about `ranks`.
std::string ranks_about(uint64_t ranks, uint64_t product) {
  const uint64_t below = ranks / product * product;
  return below == 0 ? concat("mpirun -n ", product)
                    : concat("mpirun -n ", below, " or ", below + product);
}

/// The data axis that makes the product `ranks`, where there is one, and the ranks that the mesh
/// has.
std::string remedies(const MeshShape& mesh, uint64_t ranks, uint64_t product) {
  const uint64_t others = product / static_cast<uint64_t>(mesh.along(Axis::data));
  const std::string as_many = concat("mpirun -n ", product);
  return ranks % others == 0 ? concat("mesh.data: ", ranks / others, ", or ", as_many) : as_many;
}

}  // namespace

void check_mesh(const Config& config) {
  check_tensor_axis(config.model, config.mesh.along(Axis::tensor));
  check_pipeline(config);
}

void resolve_mesh(Config& config, int ranks) {
  MeshShape& mesh = config.mesh;
  uint64_t product = 1;  // no overflow: the schema bounds each axis by 16 bits
  for (const Axis axis : kAllAxes) {
    if (mesh.along(axis) != kAutoSize) product *= static_cast<uint64_t>(mesh.along(axis));
  }
  const auto wanted = static_cast<uint64_t>(ranks);
  if (mesh.along(Axis::data) == kAutoSize) {
    WEFT_REQUIRE(wanted % product == 0, ExitCode::config,
                 "mesh: expected axes whose product divides ", ranks, " ranks, got ", product,
                 " (data=auto, pipeline=", mesh.along(Axis::pipeline),
                 ", sequence=", mesh.along(Axis::sequence), ", tensor=", mesh.along(Axis::tensor),
                 "); nearest: ", ranks_about(wanted, product));
    mesh.along(Axis::data) = static_cast<int>(wanted / product);
  } else {
    WEFT_REQUIRE(product == wanted, ExitCode::config, "mesh: expected axes whose product is ",
                 ranks, " ranks, got ", product, " (", mesh.text(),
                 "); nearest: ", remedies(mesh, wanted, product));
  }
  check_mesh(config);
}

}  // namespace weft
