// boxes.cuh - the argument of kernels that read boxes by tensor maps, and where the boxes of a block's class are.
#pragma once
#include "block.cuh"
#include "swizzled_tile.cuh"

namespace nb {
// How positions of one tensor become coordinates in its maps: innermost channels of all heads (and of the residues of the
// last axis), the axes 2, 1, 0, then the samples (and heads). nbattn/kernels/tensor_maps.py chooses it.
struct Boxes {
  int divide[3];    // 1: the coordinate is that in the residue class, 0: the position
  int fold;         // channels from one residue of the last axis to the next
  int map_step[3];  // maps from one residue of an axis to the next
  int first_map;
  int head_inner, head_outer, sample_outer;  // channels, and coordinates of the outermost axis
  int unused;
};

enum Mapped { kQueryMap, kGradOutMap, kKeyMap, kValueMap, kExtraKeyMap, kExtraValueMap, kAnyQueryMap, kAnyGradOutMap };
constexpr int kMapped = 8, kMaps = 24;  // the last two of Mapped: queries of every class, by position

struct alignas(64) MappedParams {
  Params p;
  Boxes boxes[kMapped];
  TensorMap map[kMaps];
};
static_assert(sizeof(Boxes) == 48 && sizeof(MappedParams) == 4032, "nbattn/kernels/layout.py has drifted");

// The boxes of one head in one sample, of one residue class.
struct BoxOrigin {
  const TensorMap* map;
  int inner, outer, base[3], step[3];  // coordinates: base + step times those in the class

  // `column`: class coordinates to positions, of each axis.
  NB_DEVICE BoxOrigin(const MappedParams& m, Mapped tensor, const AxisMap (&column)[3], int sample, int head) {
    const Boxes& b = m.boxes[tensor];
    int number = b.first_map;
    inner = head * b.head_inner;
    outer = head * b.head_outer + sample * b.sample_outer;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      base[axis] = column[axis].origin;
      step[axis] = column[axis].step;
      if (!b.divide[axis]) continue;
      const int quotient = floor_div(base[axis], step[axis]), residue = base[axis] - quotient * step[axis];
      number += residue * b.map_step[axis];
      if (axis == 2) inner += residue * b.fold;
      base[axis] = quotient;
      step[axis] = 1;
    }
    map = m.map + number;
  }

  // Copies the box that begins at these class coordinates.
  template <class Tile>
  NB_DEVICE void load(const Tile& to, Mbarrier* barrier, const int (&start)[3]) const {
#pragma unroll
    for (int b = 0; b < Tile::kBoxes; ++b)
      tma_load(to.box(b), map, barrier,
               {inner + b * Tile::kAtom, base[2] + step[2] * start[2], base[1] + step[1] * start[1],
                base[0] + step[0] * start[0], outer});
  }
};

// Positions as they are: of extra keys, and of queries where rows are extra keys.
NB_DEVICE void by_position(AxisMap (&column)[3]) {
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) column[axis] = {0, 1};
}
// Class coordinates to positions of a tile's rows or columns; the class coordinates of its first row.
template <bool kRows, class Rows>
NB_DEVICE void class_maps(AxisMap (&map)[3], const Traversal<Rows>& traversal) {
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) map[axis] = kRows ? traversal.axis[axis].row : traversal.axis[axis].column;
}
template <class Rows>
NB_DEVICE void first_rows(int (&first)[3], const Traversal<Rows>& traversal) {
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) first[axis] = traversal.axis[axis].first;
}
}  // namespace nb
