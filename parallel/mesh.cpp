#include "parallel/mesh.hpp"

#include <algorithm>

#include "src/core/check.hpp"

namespace weft {

const char* name(Axis axis) {
  switch (axis) {
    case Axis::data:
      return "data";
    case Axis::pipeline:
      return "pipeline";
    case Axis::sequence:
      return "sequence";
    case Axis::tensor:
      return "tensor";
  }
  return "?";
}

std::string MeshShape::text() const {
  std::string out;
  for (const Axis axis : kAllAxes) {
    out += concat(out.empty() ? "" : ",", name(axis), "=", along(axis));
  }
  return out;
}

MeshShape mesh_along(Axis axis, int ranks) {
  MeshShape shape;
  shape.along(axis) = ranks;
  return shape;
}

Coordinate coordinate_of(const MeshShape& shape, int rank) {
  Coordinate at{};
  for (int i = kAxes - 1; i >= 0; --i) {  // fastest axis first
    const Axis axis = shape.order[i];
    at[static_cast<int>(axis)] = rank % shape.along(axis);
    rank /= shape.along(axis);
  }
  return at;
}

int rank_of(const MeshShape& shape, const Coordinate& coordinate) {
  int rank = 0;
  for (const Axis axis : shape.order) {
    rank = rank * shape.along(axis) + coordinate[static_cast<int>(axis)];
  }
  return rank;
}

ProcessMesh::ProcessMesh(World& world, const MeshShape& shape, Ledgers ledgers, bool strict)
    : shape_(shape),
      ledgers_(ledgers),
      strict_(strict),
      rank_(world.rank()),
      here_(coordinate_of(shape, world.rank())) {
  WEFT_REQUIRE(shape.ranks() == world.size(), ExitCode::config, "mesh: ", shape.text(), " is ",
               shape.ranks(), " ranks, the job has ", world.size());
  for (const Axis axis : kAllAxes) {
    for (const Lane lane : {Lane::forward, Lane::backward}) {
      const char* lane_name = lane == Lane::forward ? " forward" : " backward";
      along_[{axis, lane}] = make(world, {axis}, name(axis), concat(name(axis), lane_name));
    }
  }
  replicas_ = make(world, {Axis::data, Axis::sequence}, "replicas", "replicas");
}

std::unique_ptr<Communicator> ProcessMesh::make(World& world, const std::vector<Axis>& axes,
                                                const std::string& group,
                                                const std::string& label) {
  std::vector<int> members;
  for (int rank = 0; rank < shape_.ranks(); ++rank) {
    const Coordinate there = coordinate_of(shape_, rank);
    const bool together = std::all_of(kAllAxes.begin(), kAllAxes.end(), [&](Axis axis) {
      return std::find(axes.begin(), axes.end(), axis) != axes.end() ||
             there[static_cast<int>(axis)] == at(axis);
    });
    if (together) members.push_back(rank);
  }
  // Rank order runs along an axis in the axis's own order, so position and coordinate agree.
  return std::make_unique<Communicator>(world.group(members, label), world.device(), group,
                                        ledgers_, strict_);
}

int64_t ProcessMesh::host_waits() const {
  int64_t waits = replicas_->host_waits();
  for (const auto& [place, communicator] : along_) waits += communicator->host_waits();
  return waits;
}

Communicator& ProcessMesh::along(Axis axis, Lane lane) {
  return *along_.at({axis, lane});
}

}  // namespace weft
