// visits.cuh - the visits of a block, as the loops of the tensor-core kernels need them: a ring of 32 in shared memory.
// One warp computes the next 16 at once, a lane each, while tiles are used; so a visit's divisions are paid by one warp
// in 16 visits, and the loop itself only reads.
#pragma once
#include "box_copy.cuh"

namespace nb {
struct alignas(16) StagedVisit {
  long long offset[2];  // of the first column in the tensors of columns, in bytes
  int start[3];
  unsigned char count[3], flags;
  long long terms;  // dK/dV: the same in Params::delta
  int head, unused;  // dK/dV: of the columns
  static constexpr int kFull = 1, kExtra = 2;
  NB_DEVICE bool full() const { return flags & kFull; }
  NB_DEVICE bool extra() const { return Variant::kExtra && flags & kExtra; }
};

struct Visits {
  static constexpr int kBatch = 16, kRing = 2 * kBatch, kBytes = kRing * 48;
  StagedVisit* ring;
  NB_DEVICE explicit Visits(unsigned char* at) : ring(reinterpret_cast<StagedVisit*>(at)) {}
  NB_DEVICE const StagedVisit& operator[](unsigned n) const { return ring[n % kRing]; }

  // Computes the visits from n on if n is the first of a batch; fill(staged, n) sets one. They can be read after the
  // next barrier.
  template <class Fill>
  NB_DEVICE void stage(int n, int total, const Fill& fill) const {
    static_assert(sizeof(StagedVisit) == 48, "the shared memory of a visit");
    if (n % kBatch) return;
    const int thread = static_cast<int>(threadIdx.x) - n / kBatch % Variant::kWarps * 32;
    if (thread >= 0 && thread < kBatch && n + thread < total) fill(ring[(n + thread) % kRing], n + thread);
  }
};

// The same by one warp alone, which then reads the ring.
template <class Fill>
NB_DEVICE void stage_visits(const Visits& visits, int n, int total, const Fill& fill) {
  if (n % Visits::kBatch) return;
  const int lane = threadIdx.x % 32;
  __syncwarp();  // no lane is ahead of the one that copies: consumers have left the visits that are overwritten
  if (lane < Visits::kBatch && n + lane < total) fill(visits.ring[(n + lane) % Visits::kRing], n + lane);
  __syncwarp();
}

NB_DEVICE void set(StagedVisit& staged, const Visit& v) {
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    staged.start[axis] = v.start[axis];
    staged.count[axis] = static_cast<unsigned char>(v.count[axis]);
  }
  staged.flags = static_cast<unsigned char>(v.full * StagedVisit::kFull + v.extra * StagedVisit::kExtra);
}

// The columns of a visit that are there, as an interval of each axis.
NB_DEVICE void columns_inside(Interval (&inside)[3], const StagedVisit& v) {
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) inside[axis] = {0, v.count[axis]};
}

// The columns of the forward and of dQ: keys and values, and the extra ones.
template <class KeyVectors, class ValueVectors>
struct KeyColumns {
  BoxCopy<KeyTile, KeyVectors, Variant::kHeadDim> key;
  BoxCopy<KeyTile, ValueVectors, Variant::kValueDim> value;
  NB_DEVICE explicit KeyColumns(const Params& p)
      : key(p.key, box_steps(p, p.key_stride)), value(p.value, box_steps(p, p.value_stride)) {}

  NB_DEVICE static void fill(StagedVisit& staged, int n, const Params& p, const Traversal<QueryTile>& traversal,
                             int sample, int head) {
    const Visit v = visit<KeyTile>(traversal, n, extra_keys(p, sample));
    set(staged, v);
    const Coord corner = column_coord<KeyTile>(traversal, v, 0);
    staged.offset[0] = offset_of(p.key_stride, sample, head, corner);
    staged.offset[1] = offset_of(p.value_stride, sample, head, corner);
  }
  NB_DEVICE void load(const KeyVectors& to_key, const ValueVectors& to_value, const StagedVisit& v, const Params& p,
                      int sample, int head) const {
    if (v.extra()) {
      load_extra<Variant::kHeadDim, KeyTile::size>(to_key, p, p.extra_key, v.start[2], {0, v.count[2]}, sample, head);
      load_extra<Variant::kValueDim, KeyTile::size>(to_value, p, p.extra_value, v.start[2], {0, v.count[2]}, sample,
                                                    head);
      return;
    }
    Interval inside[3];
    columns_inside(inside, v);
    key.load(to_key, v.offset[0], inside);
    value.load(to_value, v.offset[1], inside);
  }
};
}  // namespace nb
