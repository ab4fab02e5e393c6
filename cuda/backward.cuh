// backward.cuh - what both gradient kernels on tensor cores compute from scores: weights and gradients of products.
#pragma once
#include "mask.cuh"
#include "softmax.cuh"

namespace nb {
struct RowTerms {  // of one query, as delta.cu writes them
  float lse_log2, delta;
};

// The scores before something is added, where the softcap's derivative needs them.
template <int kColumns, bool kKept = Variant::kSoftcap && Variant::kBias>
struct Capped {
  NB_DEVICE explicit Capped(const Fragment<kColumns>&) {}
  NB_DEVICE float of(int, int, int, float score) const { return score; }
};
template <int kColumns>
struct Capped<kColumns, true> {
  Fragment<kColumns> kept;
  NB_DEVICE explicit Capped(const Fragment<kColumns>& s) : kept(s) {}
  NB_DEVICE float of(int b, int n, int e, float) const { return kept.at[b][n][e]; }
};

// Replaces scores by weights and, if kGrads, the gradients of weights by those of products. terms(n, e) are the
// query's of an element, for row block b. Per element: FFMA, MUFU, FADD, FMUL.
template <bool kGrads, int kColumns, class Terms>
NB_DEVICE void recompute_p(Fragment<kColumns>& s, Fragment<kColumns>& grads, const Capped<kColumns>& capped,
                           const Scores& scores, const Terms& terms) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
#pragma unroll
      for (int b = 0; b < Variant::kRowBlocks; ++b) {
        const RowTerms t = terms(b, n, e);
        const float score = s.at[b][n][e], weight = ex2(score * scores.factor - t.lse_log2);
        s.at[b][n][e] = weight;
        if constexpr (kGrads) {
          const float slope = Variant::kSoftcap ? weight * scores.slope(capped.of(b, n, e, score)) : weight;
          grads.at[b][n][e] = slope * (grads.at[b][n][e] - t.delta);
        }
      }
}
}  // namespace nb
