// backward.h - the backward passes of a tile: weights from the logsumexp, then sums. Rows are queries for dQ and for all
// gradients at once, where columns have sums, too; in the pass of dK and dV alone they are keys.
#pragma once
#include "forward.h"

namespace nb {
// The weights p and the gradients of scaled scores, p (dP - delta), of a piece: `lse` and `delta` are those of lanes or
// of columns.
template <int M, bool kPairs, class F, class Lse, class Delta>
NB_INLINE void weights_of(Worker<F>& w, Tile<F>& t, const Gate<F>& gate, const Piece& at, Wide<F>* p, Wide<F>* ds,
                          const Lse& lse, const Delta& delta) {
  Wide<F> s[M], g[M], slope[M];
  scores_of<M, kPairs>(w, t, at, s, slope);
  NB_UNROLL for (int m = 0; m < M; ++m) s[m] = exp2_of(s[m] - lse(m));
  if (!at.whole) hide<M>(s, gate, at.first, F(0));
  NB_UNROLL for (int m = 0; m < M; ++m) p[m] = s[m];
  products_b<M, kPairs>(w, t, at.row, g);
  NB_UNROLL for (int m = 0; m < M; ++m) ds[m] = p[m] * (g[m] - delta(m));
  if (t.bias_sums && at.cell != kNoCell)
    NB_UNROLL for (int m = 0; m < M; ++m) t.bias_sums[at.cell + m] = t.bias_sums[at.cell + m] + ds[m];
  if (w.p.softcap != 0)
    NB_UNROLL for (int m = 0; m < M; ++m) ds[m] = ds[m] * slope[m];
}

template <class F, bool kPairs>
struct GradQuery {
  static constexpr bool kForward = false;

  static void begin(Worker<F>& w, Tile<F>& t, const Side& a, const Side& b, const Side& out, int sample) {
    const Params& p = w.p;
    w.load_factors(t, a, sample, t.rows_a, t.a);
    w.load(t, b, sample, t.rows_b, t.b);
    Wide<F>* const outputs = reinterpret_cast<Wide<F>*>(t.sum_b);
    w.load(t, out, sample, w.rows, outputs);
    t.total = Wide<F>{};
    for (int c = 0; c < w.e; ++c) t.total = t.total + t.b[c] * outputs[c];
    if (kPairs) w.load_factors(t, b, sample, t.rows_b, t.b);
    long long at[kLanes];
    w.offsets(t, contiguous(p, p.heads, 1, false), sample, t.rows, at);
    for (int lane = 0; lane < kLanes; ++lane) {
      t.top.lane(lane) = F(INFINITY);  // of no row: weights of 0, whatever is added to its scores
      if (at[lane] == kNowhere) continue;
      const F lse = static_cast<const F*>(p.lse)[at[lane]];
      const bool empty = lse == F(-INFINITY);  // then any numbers, but none of grad_lse, which may be NaN
      t.top.lane(lane) = empty ? F(0) : lse * F(kLog2E);
      if (empty) t.total.lane(lane) = 0;
      else if (p.grad_lse) t.total.lane(lane) -= static_cast<const F*>(p.grad_lse)[at[lane]];
      if (!p.delta) continue;
      F* const numbers = static_cast<F*>(p.delta) + 2 * at[lane];
      numbers[0] = t.top.lane(lane);
      numbers[1] = t.total.lane(lane);
    }
    clear(t.sum_a, w.row_a);
  }

  template <int M>
  static void piece(Worker<F>& w, Tile<F>& t, const Gate<F>& gate, const Piece& at) {
    const Wide<F> lse = t.top, delta = t.total;
    weights_of<M, kPairs>(
        w, t, gate, at, w.scores + w.count, w.gradients + w.count, [&](int) { return lse; },
        [&](int) { return delta; });
  }

  NB_APART static void flush(Worker<F>& w, Tile<F>& t) {
    add_columns(w, t.sum_a, w.gradients, w.columns_a());
    w.clear_scores();
  }

  static void finish(Worker<F>& w, Tile<F>& t, int sample) {
    const Params& p = w.p;
    w.store(t, p.grad_query, contiguous(p, p.heads, w.d, false), w.d, sample, t.sum_a, w.row_a, wide(F(p.scale)));
  }
};

// All gradients: a tile's weights are also those of its rows in its columns' sums.
template <class F>
struct GradAll : GradQuery<F, false> {
  NB_APART static void flush(Worker<F>& w, Tile<F>& t) {
    add_to_columns(w, {w.column_sum_a, w.row_a, w.column}, w.gradients, {t.rows_a, w.lanes_a, kInOrder});
    add_to_columns(w, {w.column_sum_b, w.row_b, w.column}, w.scores, {t.rows_b, w.lanes_b, kInOrder});
    GradQuery<F, false>::flush(w, t);
  }

 private:
  static void add_to_columns(const Worker<F>& w, const RowList<F>& to, const Wide<F>* weights,
                             const RowList<const F>& rows) {
    w.spans.each_span(w.count, [&](int lane, int lanes, int first, int count) {
      add_rows<F>({to.data, to.width, to.number + first}, count, {rows.data + lane * rows.width, rows.width, kInOrder},
               lanes, {weights[first].numbers() + lane, kLanes, 1}, int(to.width));
    });
  }
};

template <class F, bool kPairs>
struct GradKey {
  static void begin(Worker<F>& w, Tile<F>& t, const Side& a, const Side& b, int sample) {
    w.load_factors(t, a, sample, t.rows_a, t.a);
    w.load_factors(t, b, sample, t.rows_b, t.b);
    clear(t.sum_a, w.row_a);
    clear(t.sum_b, w.row_b);
  }

  template <int M>
  static void piece(Worker<F>& w, Tile<F>& t, const Gate<F>& gate, const Piece& at) {
    const F *lse = w.lse + at.row, *delta = w.delta + at.row;
    weights_of<M, kPairs>(
        w, t, gate, at, w.scores + w.count, w.gradients + w.count, [&](int m) { return wide(lse[m]); },
        [&](int m) { return wide(delta[m]); });
  }

  NB_APART static void flush(Worker<F>& w, Tile<F>& t) {
    add_columns(w, t.sum_a, w.gradients, w.columns_a());
    add_columns(w, t.sum_b, w.scores, w.columns_b());
    w.clear_scores();
  }

  static void finish(Worker<F>& w, Tile<F>& t, void* grad_a, void* grad_b, const Strides& a, const Strides& b,
                     int sample) {
    w.store(t, grad_a, a, w.d, sample, t.sum_a, w.row_a, wide(F(w.p.scale)));
    w.store(t, grad_b, b, w.e, sample, t.sum_b, w.row_b, wide(F(1)));
  }
};
}  // namespace nb
