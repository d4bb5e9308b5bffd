// The mesh: P = data x pipeline x sequence x tensor ranks, and the groups along its axes.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "parallel/comm/communicator.hpp"
#include "parallel/parameter.hpp"

namespace weft {

enum class Axis { data, pipeline, sequence, tensor };
inline constexpr int kAxes = 4;
inline constexpr std::array<Axis, kAxes> kAllAxes{Axis::data, Axis::pipeline, Axis::sequence,
                                                  Axis::tensor};

const char* name(Axis axis);

struct MeshShape {
  std::array<int, kAxes> size{1, 1, 1, 1};  // indexed by Axis
  /// Slowest to fastest in rank order.
  std::array<Axis, kAxes> order = kAllAxes;

  int along(Axis axis) const { return size[static_cast<int>(axis)]; }
  int& along(Axis axis) { return size[static_cast<int>(axis)]; }
  int ranks() const { return size[0] * size[1] * size[2] * size[3]; }
  /// "data=1,pipeline=1,sequence=4,tensor=1"
  std::string text() const;
};

/// All ranks along one axis.
MeshShape mesh_along(Axis axis, int ranks);

/// Where a rank stands on each axis, indexed by Axis.
using Coordinate = std::array<int, kAxes>;
Coordinate coordinate_of(const MeshShape& shape, int rank);
int rank_of(const MeshShape& shape, const Coordinate& coordinate);

/// Two operations that may be in flight at once on one axis take different lanes.
enum class Lane { forward, backward };

/// One rank's view of the mesh. Makes every group it is part of when constructed: all ranks of the
/// world construct theirs together.
class ProcessMesh {
 public:
  /// Throws Error(config) when the shape's product is not the world's size.
  ProcessMesh(World& world, const MeshShape& shape, Ledgers ledgers, bool strict);

  const MeshShape& shape() const { return shape_; }
  int rank() const { return rank_; }
  int size(Axis axis) const { return shape_.along(axis); }
  int at(Axis axis) const { return here_[static_cast<int>(axis)]; }

  /// The ranks that differ from this one on `axis` alone, in the order of that axis: the sequence or
  /// the tensor axis. Stages of a pipeline have channels (parallel/pipeline/channels.hpp), and the
  /// data axis is part of the holders.
  Communicator& along(Axis axis, Lane lane = Lane::forward);
  /// The ranks that hold the same elements of a parameter, in rank order. Gradients are summed over
  /// it once, and the optimizer is sharded over it. Made by make_holders.
  Communicator& holders(const Holders& holders) { return *holders_.at(holders); }
  /// Makes the groups of some kinds; all ranks of each group name it in their call.
  void make_holders(World& world, const std::set<Holders>& kinds);
  /// All ranks.
  Communicator& everyone() { return *everyone_; }
  /// How often the transfers of all groups have waited for a GPU on the host so far.
  int64_t host_waits() const;

 private:
  /// Of the ranks whose coordinates `belongs` accepts.
  std::unique_ptr<Communicator> make(World& world,
                                     const std::function<bool(const Coordinate&)>& belongs,
                                     const std::string& group, const std::string& label);

  MeshShape shape_;
  Ledgers ledgers_;
  bool strict_;
  int rank_;
  Coordinate here_;
  std::map<std::pair<Axis, Lane>, std::unique_ptr<Communicator>> along_;
  std::map<Holders, std::unique_ptr<Communicator>> holders_;
  std::unique_ptr<Communicator> everyone_;
};

}  // namespace weft
