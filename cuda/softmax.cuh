// softmax.cuh - scores, the online softmax of the forward, and the weights that the backward recomputes.
#pragma once
#include "added_scores.cuh"
#include "mma.cuh"
#include "visits.cuh"

namespace nb {
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLowest = -3.402823466e38f;  // the maximum of a row without scores: finite, so that differences are
constexpr float kLeast = 1e-30f;  // a factor of 0: no product gets past rounding
constexpr float kSlack = 8;  // how far, in units of log 2, scores may pass the maximum that weights are relative to

// Scores; times `factor`, by the exponent's FFMA, they are in units of log 2. Where nothing else is to be done they are
// the products; where something is added to them they are in units of 1, otherwise in units of log 2.
struct Scores {
  float factor, bend, cap;  // scale of tanh's argument; the softcap in the scores' units
  float unit;               // of products where something is added to them
  NB_DEVICE explicit Scores(const Params& p)
      : factor(Variant::kBias      ? kLog2e
               : Variant::kSoftcap ? 1.f
                                   : static_cast<float>(p.scale) * kLog2e),
        bend(p.softcap ? static_cast<float>(p.scale / p.softcap) : 0.f),
        cap(static_cast<float>(p.softcap) * (Variant::kBias ? 1.f : kLog2e)),
        unit(Variant::kSoftcap ? 1.f : static_cast<float>(p.scale)) {
    if (fabsf(factor) < kLeast) factor = factor < 0.f ? -kLeast : kLeast;  // 0 x infinity is NaN
  }

  // What masked products become: times the factor, it is -infinity.
  NB_DEVICE float hidden() const { return factor < 0.f ? NB_INFINITY : -NB_INFINITY; }

  NB_DEVICE float capped(float product) const {
    const float x = product * bend, square = x * x;
    // Near 0, where a large cap puts all scores, `far` would lose digits; the series has an error of 3e-7 there.
    const float near = x * (1.f + square * (-1.f / 3 + square * (2.f / 15 - square * (17.f / 315))));
    const float far = 1.f - 2.f * reciprocal(1.f + ex2(2 * kLog2e * x));
    return cap * (square < 0.0625f ? near : far);
  }
  // Replaces products by capped scores.
  template <int kColumns>
  NB_DEVICE void softcap(Fragment<kColumns>& s) const {
    if constexpr (Variant::kSoftcap) {
#pragma unroll
      for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) s.at[b][n][e] = capped(s.at[b][n][e]);
    }
  }
  // Scales products and adds what is added by position to pairs that are read(b, h, bit), bits as in mask.cuh; extra
  // keys, rows or columns, get nothing more.
  template <bool kKeyRows, class Rows, class Columns, int kColumns, class Read>
  NB_DEVICE void add_bias(Fragment<kColumns>& s, const Params& p, const Traversal<Rows>& traversal,
                          const StagedVisit& v, int sample, int head, const Read& read) const {
    if constexpr (Variant::kBias) {
      const bool extra = v.extra() || (Variant::kExtra && kKeyRows && traversal.extra >= 0);
      const AddedScores<kKeyRows, Rows, Columns> added(p, sample, head);
#pragma unroll
      for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          AddedRow row;
          if (!extra) row = added.row(p, traversal, v.start, column_of(0, 0), row_of(b, h));
#pragma unroll
          for (int bit = 0; bit < kColumns / 4; ++bit) {
            float& x = s.at[b][bit / 2][2 * h + bit % 2];
            const float more = extra ? 0.f : added.of(p, row, bit / 2 * 8 + bit % 2, read(b, h, bit));
            x = x * unit + more;
          }
        }
    }
  }
  // Derivative of the softcap at a score.
  NB_DEVICE float slope(float score) const {
    if (!Variant::kSoftcap) return 1.f;
    const float bent = fmaxf(score, -cap) / cap;
    return 1.f - bent * bent;
  }
};

template <int kColumns>
NB_DEVICE void negate(Fragment<kColumns>& s) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) s.at[0][n][e] = -s.at[0][n][e];
}

// The running softmax of this thread's rows: the maximum that weights are relative to, in units of log 2, and this
// thread's part of their sum.
struct Softmax {
  float max[Variant::kRowBlocks][2], sum[Variant::kRowBlocks][2];

  // A sink is one more score of a row, counted by one of its four lanes.
  NB_DEVICE void begin(int b, int h, float sink) {
    max[b][h] = fmaxf(sink * kLog2e, kLowest);
    sum[b][h] = sink != -NB_INFINITY && threadIdx.x % 4 == 0 ? 1.f : 0.f;
  }
};

NB_DEVICE float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// The largest score of a row in a visit, over its four lanes; -inf if all are masked.
template <int kColumns>
NB_DEVICE float row_max(const float (&s)[kColumns / 8][4], int h) {
  float top = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
  for (int n = 1; n < kColumns / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
  return fmaxf(top, __shfl_xor_sync(~0u, top, 2));
}

// Moves the running maxima, only when some score of the warp's rows passes its own by kSlack: weights stay below 2^8,
// and most visits skip the rescaling. If it returns true, the output is to be rescaled. `factor` is positive.
template <int kColumns>
NB_DEVICE bool move_maxima(const Fragment<kColumns>& s, Softmax& state, float (&shrink)[Variant::kRowBlocks][2],
                           float factor) {
  float top[Variant::kRowBlocks][2];
  bool moves = false;
#pragma unroll
  for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[b][h] = row_max<kColumns>(s.at[b], h);
      moves = moves || top[b][h] * factor - state.max[b][h] > kSlack;
    }
  moves = __any_sync(~0u, moves);
  if (moves) {
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float max = fmaxf(state.max[b][h], top[b][h] * factor);
        shrink[b][h] = ex2(state.max[b][h] - max);
        state.max[b][h] = max;
        state.sum[b][h] *= shrink[b][h];
      }
  }
  return moves;
}

template <int kPadded>
NB_DEVICE void rescale(Fragment<kPadded>& out, const float (&shrink)[Variant::kRowBlocks][2]) {
#pragma unroll
  for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kPadded / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) out.at[b][n][e] *= shrink[b][e / 2];
}

// Replaces scores by weights relative to the maxima, and adds them to the sums.
template <int kColumns>
NB_DEVICE void weigh(Fragment<kColumns>& s, Softmax& state, float factor) {
#pragma unroll
  for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s.at[b][n][e];
        x = ex2(x * factor - state.max[b][e / 2]);
        state.sum[b][e / 2] += x;
      }
}

// The whole step of a visit. Per element: FMNMX, FFMA, MUFU, FADD.
template <int kColumns, int kPadded>
NB_DEVICE void online_softmax(Fragment<kColumns>& s, Softmax& state, Fragment<kPadded>& out, float factor) {
  float shrink[Variant::kRowBlocks][2];
  if (move_maxima(s, state, shrink, factor)) rescale(out, shrink);
  weigh(s, state, factor);
}
}  // namespace nb
