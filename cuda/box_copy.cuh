// box_copy.cuh - copies boxes of vectors from tensors of any strides to shared memory. A thread copies the same
// channels of every kStep-th vector: its own part of each address is computed once, the rest per box.
#pragma once
#include "block.cuh"
#include "shared_tile.cuh"

namespace nb {
// Bytes from one class coordinate to the next on each axis, and from one channel to the next.
struct BoxSteps {
  long long axis[3], channel;
};
constexpr int kItem = sizeof(Element);
// `by_position`: coordinates are positions, as for the columns of extra keys in dK/dV.
NB_DEVICE BoxSteps box_steps(const Params& p, const Strides& s, bool by_position = false) {
  BoxSteps steps;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis)
    steps.axis[axis] = s.axis[axis] * ((Variant::kExtra && by_position ? 1 : p.axis[axis].dilation) * kItem);
  steps.channel = s.channel * kItem;
  return steps;
}

NB_DEVICE constexpr int power_of_two_in(int x) { return x & -x; }

// Box: the extents, powers of two. kGiven: channels in the tensor; the tile's others become zeros.
template <class Box, class Tile, int kGiven>
struct BoxCopy {
  static constexpr int kThreads = Variant::kThreads, kLanes = power_of_two_in(Tile::kChunks);
  static constexpr int kChunksPerLane = Tile::kChunks / kLanes, kStep = kThreads / kLanes;
  static constexpr int kCopies = kStep < Box::size ? Box::size / kStep : 1;
  static constexpr int kUnroll = Variant::kVector ? kCopies : 1;  // elements one by one take few registers this way
  static_assert(kThreads % kLanes == 0 && power_of_two_in(kThreads) == kThreads, "threads in whole vectors");
  static_assert(power_of_two_in(Box::of(0)) == Box::of(0) && power_of_two_in(Box::of(1)) == Box::of(1) &&
                    power_of_two_in(Box::of(2)) == Box::of(2),
                "the coordinates of a thread's first vector and of its later ones add without a carry");
  const unsigned char* own;  // the tensor, plus this thread's part of every offset
  BoxSteps steps;

  NB_DEVICE static int lane() { return threadIdx.x % kLanes; }
  NB_DEVICE static int first() { return threadIdx.x / kLanes; }  // this thread's first vector

  NB_DEVICE BoxCopy(const void* tensor, const BoxSteps& given)
      : own(static_cast<const unsigned char*>(tensor)), steps(given) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      if (Box::of(axis) > 1) own += Box::coordinate(axis, first()) * steps.axis[axis];
    own += Variant::kVector ? lane() * 16 : lane() * 8 * steps.channel;
  }

  // Copies the box at `offset` bytes; vectors with a coordinate outside `inside` become zeros. The tile can be used
  // after the next cp_async_wait and barrier. Per chunk of 16 bytes: an LDGSTS, a comparison, a 64-bit addition.
  template <bool kFromZero = true>
  NB_DEVICE void load(const Tile& tile, long long offset, const Interval (&inside)[3]) const {
    if (kStep > Box::size && first() >= Box::size) return;
    const unsigned char* const base = own + offset;
    Element* const to = tile.chunk(first(), lane());
#pragma unroll kUnroll
    for (int j = 0; j < kCopies; ++j) {
      const unsigned char* from = base;
      bool valid = true;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        if (Box::of(axis) == 1 && kFromZero) continue;
        const int own_coordinate = Box::coordinate(axis, first()), c = Box::coordinate(axis, j * kStep);
        from += c * steps.axis[axis];
        valid = valid && own_coordinate < inside[axis].hi - c;
        if (!kFromZero) valid = valid && own_coordinate >= inside[axis].lo - c;
      }
#pragma unroll(Variant::kVector ? kChunksPerLane : 1)
      for (int i = 0; i < kChunksPerLane; ++i)
        chunk(to + j * kStep * Tile::kPitch + i * kLanes * 8, from, i * kLanes,
              valid && (kGiven == Tile::kPadded || (i * kLanes + lane()) * 8 < kGiven));
    }
  }

 private:
  // Copies one chunk, `more` chunks after this thread's first one.
  NB_DEVICE void chunk(Element* to, const unsigned char* from, int more, bool valid) const {
    if constexpr (Variant::kVector) {
      cp_async<16>(to, from + more * 16, valid);
    } else {
#pragma unroll 1
      for (int e = 0; e < 8; ++e)
        to[e] = valid ? *reinterpret_cast<const Element*>(from + (more * 8 + e) * steps.channel) : Element(0.f);
    }
  }
};

// Byte offset of a sample's head and of a coordinate in a tensor.
NB_DEVICE long long offset_of(const Strides& s, int sample, int head, const Coord& coord) {
  return (sample * s.batch + head * s.head + coord.offset(s)) * kItem;
}

// Copies the rows of a block's tile.
template <int kGiven, bool kKeys = false, class Rows, class Tile>
NB_DEVICE void load_rows(const Tile& tile, const Params& p, const Traversal<Rows>& traversal, const void* tensor,
                         const Strides& s, int sample, int head) {
  Coord corner;
  Interval inside[3];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisTraversal& t = traversal.axis[axis];
    corner.at[axis] = t.row.position(t.first);
    inside[axis] = {0, t.rows};
    if (kKeys && Variant::kKeyRange) inside[axis] = cut(inside[axis], t.valid.plus(-t.first));
  }
  const BoxCopy<Rows, Tile, kGiven> copy(tensor, box_steps(p, s));
  copy.template load<!(kKeys && Variant::kKeyRange)>(tile, offset_of(s, sample, head, corner), inside);
}

// Copies extra keys or values from `first` on, from a contiguous tensor `[B, E, Hk, kChannels]`; kRows: those of a block's
// tile, of which the first may be outside.
template <int kChannels, int kVectors, bool kRows = false, class Tile>
NB_DEVICE void load_extra(const Tile& tile, const Params& p, const void* tensor, int first, Interval inside, int sample,
                          int head) {
  using Line = Extents<1, 1, kVectors>;
  BoxSteps steps = {{0, 0, 0}, kItem};
  steps.axis[2] = static_cast<long long>(p.heads / p.group) * kChannels * kItem;
  const BoxCopy<Line, Tile, kChannels> copy(tensor, steps);
  copy.template load<!(kRows && Variant::kExtraRange)>(tile, extra_offset(p, sample, first, head, kChannels) * kItem,
                                                       {{0, 1}, {0, 1}, inside});
}
}  // namespace nb
