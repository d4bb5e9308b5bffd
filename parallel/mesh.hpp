// The mesh: P = data x pipeline x sequence x tensor ranks, and the groups along its axes.
#pragma once

#include <array>
#include <string>

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

}  // namespace weft
