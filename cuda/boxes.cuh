// boxes.cuh - the argument of kernels that read boxes by tensor maps, and where the boxes of a block's class are.
#pragma once
#include "block.cuh"
#include "swizzled_tile.cuh"

namespace nb {
// How positions of one tensor become coordinates in its maps: innermost channels of all heads (and of the residues of
// the last axis), the axes 2, 1, 0, then the samples (and heads). nbattn/kernels/tensor_maps.py chooses it.
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

// The head and the sample of a block, in shared memory: registers are scarce.
struct Place {
  int head, sample;
};

// The boxes of one head in one sample, of one residue class. Those of a block are in shared memory: the warp that
// copies has few registers.
struct BoxOrigin {
  const TensorMap* map;
  int inner, outer, base[3], step[3];  // coordinates: base + step times those in the class

  // Copies the box that begins at these class coordinates.
  template <class Tile>
  NB_DEVICE void load(const Tile& to, Mbarrier* barrier, const int (&start)[3]) const {
    load(to, barrier, start, inner, outer);
  }
  // The same of a later head.
  template <class Tile>
  NB_DEVICE void load(const Tile& to, Mbarrier* barrier, const int (&start)[3], int more, const Boxes& boxes) const {
    load(to, barrier, start, inner + more * boxes.head_inner, outer + more * boxes.head_outer);
  }

 private:
  template <class Tile>
  NB_DEVICE void load(const Tile& to, Mbarrier* barrier, const int (&start)[3], int from, int of) const {
    mbarrier_arrive_expect(barrier, Tile::kBytes);
#pragma unroll
    for (int b = 0; b < Tile::kBoxes; ++b)
      tma_load(to.box(b), map, barrier,
               {from + b * Tile::kAtom, base[2] + step[2] * start[2], base[1] + step[1] * start[1],
                base[0] + step[0] * start[0], of});
  }
};
constexpr int kOriginBytes = 4 * sizeof(BoxOrigin);

// `to_position(axis)`: from class coordinates to positions.
template <class ToPosition>
NB_DEVICE BoxOrigin box_origin(const MappedParams& m, Mapped tensor, const Place& place,
                               const ToPosition& to_position) {
  const Boxes& b = m.boxes[tensor];
  BoxOrigin origin;
  int number = b.first_map;
  origin.inner = place.head * b.head_inner;
  origin.outer = place.head * b.head_outer + place.sample * b.sample_outer;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    AxisMap to = to_position(axis);
    if (b.divide[axis]) {
      const int quotient = floor_div(to.origin, to.step), residue = to.origin - quotient * to.step;
      number += residue * b.map_step[axis];
      if (axis == 2) origin.inner += residue * b.fold;
      to = AxisMap{quotient, 1};
    }
    origin.base[axis] = to.origin;
    origin.step[axis] = to.step;
  }
  origin.map = m.map + number;
  return origin;
}
NB_DEVICE BoxOrigin by_position(const MappedParams& m, Mapped tensor, const Place& place) {
  return box_origin(m, tensor, place, [](int) { return AxisMap{0, 1}; });
}

// Copies a tile's rows.
template <class Tile, class Rows>
NB_DEVICE void load_rows(const Tile& to, Mbarrier* barrier, const MappedParams& m, Mapped tensor,
                         const Traversal<Rows>& traversal, const Place& place) {
  const int first[3] = {traversal.axis[0].first, traversal.axis[1].first, traversal.axis[2].first};
  box_origin(m, tensor, place, [&](int axis) { return traversal.axis[axis].row; }).load(to, barrier, first);
}

// Keys and values as columns, then the extra ones.
template <class Rows>
NB_DEVICE void key_origins(BoxOrigin* origin, const MappedParams& m, const Traversal<Rows>& traversal,
                           const Place& query) {
  const Place place = {query.head / m.p.group, query.sample};
  const auto columns = [&](int axis) { return traversal.axis[axis].column; };
  origin[0] = box_origin(m, kKeyMap, place, columns);
  origin[1] = box_origin(m, kValueMap, place, columns);
  if (Variant::kExtra) {
    origin[2] = by_position(m, kExtraKeyMap, place);
    origin[3] = by_position(m, kExtraValueMap, place);
  }
}
}  // namespace nb
