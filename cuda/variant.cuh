// variant.cuh - the compile-time constants of a variant: the only place that reads the compiler's NB_* options.
#pragma once
#include "base.cuh"

// Options that a kernel does not use may be absent.
#ifndef NB_HEAD_DIM
#define NB_HEAD_DIM NB_VALUE_DIM
#endif
#ifndef NB_WARPS
#define NB_WARPS 4
#endif
#ifndef NB_ROW_BLOCKS
#define NB_ROW_BLOCKS 1
#endif
#ifndef NB_STAGES
#define NB_STAGES 2
#endif
#ifndef NB_VECTOR
#define NB_VECTOR 0
#endif
#ifndef NB_GRADS
#define NB_GRADS 0
#endif
#ifndef NB_SOFTCAP
#define NB_SOFTCAP 0
#endif
#ifndef NB_TWO_RUNS
#define NB_TWO_RUNS 0
#endif
#ifndef NB_KEY_RANGE
#define NB_KEY_RANGE 0
#endif
#ifndef NB_EXTRA
#define NB_EXTRA 0
#endif
#ifndef NB_EXTRA_RANGE
#define NB_EXTRA_RANGE 0
#endif
#ifndef NB_BIAS
#define NB_BIAS 0
#endif
#ifndef NB_GRIDS
#define NB_GRIDS 0
#endif

namespace nb {
struct Variant {  // README.md explains each constant
  static constexpr int kHeadDim = NB_HEAD_DIM, kValueDim = NB_VALUE_DIM;
  static constexpr bool kTwoRuns = NB_TWO_RUNS, kKeyRange = NB_KEY_RANGE, kSoftcap = NB_SOFTCAP, kExtra = NB_EXTRA,
                        kExtraRange = NB_EXTRA_RANGE, kTable = NB_BIAS & 1, kAlibi = NB_BIAS & 2, kBias = NB_BIAS,
                        kVector = NB_VECTOR, kGrids = NB_GRIDS, kGradValue = NB_GRADS & 1, kGradKey = NB_GRADS & 2;
  static constexpr int kWarps = NB_WARPS, kThreads = 32 * kWarps, kRowBlocks = NB_ROW_BLOCKS, kStages = NB_STAGES;
};

template <int A0, int A1, int A2>
struct Extents {  // lengths of a tile per axis; indices are row-major
  static constexpr int size = A0 * A1 * A2, sum = A0 + A1 + A2;
  NB_DEVICE static constexpr int of(int axis) { return axis == 0 ? A0 : axis == 1 ? A1 : A2; }
  NB_DEVICE static constexpr int first(int axis) { return axis == 0 ? 0 : axis == 1 ? A0 : A0 + A1; }
  NB_DEVICE static constexpr int coordinate(int axis, unsigned index) {
    return axis == 0 ? index / (A1 * A2) : axis == 1 ? index / A2 % A1 : index % A2;
  }
};
using QueryTile = Extents<NB_QUERY_TILE_0, NB_QUERY_TILE_1, NB_QUERY_TILE_2>;
using KeyTile = Extents<NB_KEY_TILE_0, NB_KEY_TILE_1, NB_KEY_TILE_2>;
}  // namespace nb
