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
  for (const Axis axis : {Axis::sequence, Axis::tensor}) {
    const auto differs_on_it_alone = [&](const Coordinate& there) {
      return std::all_of(kAllAxes.begin(), kAllAxes.end(),
                         [&](Axis a) { return a == axis || there[static_cast<int>(a)] == at(a); });
    };
    for (const Lane lane : {Lane::forward, Lane::backward}) {
      const char* lane_name = lane == Lane::forward ? " forward" : " backward";
      along_[{axis, lane}] =
          make(world, differs_on_it_alone, name(axis), concat(name(axis), lane_name));
    }
  }
  everyone_ = make(
      world, [](const Coordinate&) { return true; }, "everyone", "everyone");
}

void ProcessMesh::make_holders(World& world, const std::set<Holders>& kinds) {
  // The set's order is one for all ranks, so that those who share several groups make them alike.
  for (const Holders& kind : kinds) {
    if (holders_.contains(kind)) continue;
    const auto block = [&](int tensor) { return tensor / kind.tensor; };
    const auto is_end = [&](int stage) { return stage == 0 || stage == size(Axis::pipeline) - 1; };
    const auto holds_the_same = [&](const Coordinate& there) {
      const int stage = there[static_cast<int>(Axis::pipeline)];
      const bool same_stage = stage == at(Axis::pipeline);
      return block(there[static_cast<int>(Axis::tensor)]) == block(at(Axis::tensor)) &&
             (kind.both_ends ? is_end(stage) : same_stage);
    };
    std::string group = "replicas";
    if (kind.tensor > 1) group += concat(" x ", kind.tensor, " tensor");
    if (kind.both_ends && size(Axis::pipeline) > 1) group += " x both ends";
    holders_[kind] = make(world, holds_the_same, group, group);
  }
}

std::unique_ptr<Communicator> ProcessMesh::make(
    World& world, const std::function<bool(const Coordinate&)>& belongs, const std::string& group,
    const std::string& label) {
  std::vector<int> members;
  for (int rank = 0; rank < shape_.ranks(); ++rank) {
    if (belongs(coordinate_of(shape_, rank))) members.push_back(rank);
  }
  // Rank order runs along an axis in the axis's own order, so position and coordinate agree.
  return std::make_unique<Communicator>(world.group(members, label), world.device(), group,
                                        ledgers_, strict_);
}

int64_t ProcessMesh::host_waits() const {
  int64_t waits = everyone_->host_waits();
  for (const auto& [place, communicator] : along_) waits += communicator->host_waits();
  for (const auto& [kind, communicator] : holders_) waits += communicator->host_waits();
  return waits;
}

Communicator& ProcessMesh::along(Axis axis, Lane lane) {
  return *along_.at({axis, lane});
}

}  // namespace weft
