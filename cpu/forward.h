// forward.h - the forward pass of a tile: an online softmax from one flush of scores to the next.
#pragma once
#include <math.h>

#include "visit.h"

namespace nb {
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Products of the lanes' rows with packed rows a or b.
template <int M, bool kPairs, class F>
NB_INLINE void products_a(const Worker<F>& w, const Tile<F>& t, long row, Wide<F> (&s)[M]) {
  if constexpr (kPairs) dot_pairs<M>(w.pairs_a + row * w.pair_a, w.pair_a, t.a, w.pair_a, s);
  else dot<M>(w.packed_a + row * w.row_a, w.row_a, t.a, w.d, s);
}
template <int M, bool kPairs, class F>
NB_INLINE void products_b(const Worker<F>& w, const Tile<F>& t, long row, Wide<F> (&s)[M]) {
  if constexpr (kPairs) dot_pairs<M>(w.pairs_b + row * w.pair_b, w.pair_b, t.b, w.pair_b, s);
  else dot<M>(w.packed_b + row * w.row_b, w.row_b, t.b, w.e, s);
}

// s[m] softly capped. `slope` gets the derivative of the cap.
template <int M, class F>
NB_INLINE void cap_scores(const Worker<F>& w, Wide<F> (&s)[M], Wide<F>* slope) {
  const Wide<F> cap = wide(F(w.p.softcap * kLog2E)), one = wide(F(1));
  NB_UNROLL for (int m = 0; m < M; ++m) {
    const Wide<F> x = tanh_of(s[m]);
    s[m] = cap * x;
    if (slope) slope[m] = one - x * x;
  }
}
// s[m] and what the table and ALiBi add to it.
template <int M, class F>
NB_INLINE void add_to_scores(const Worker<F>& w, const Tile<F>& t, const Piece& at, Wide<F> (&s)[M]) {
  if (t.bias) NB_UNROLL for (int m = 0; m < M; ++m) s[m] = s[m] + t.bias[at.cell + m];
  if (!w.p.alibi_slopes) return;
  const Wide<F> slope = t.slope, one = wide(F(1)), zero = wide(F(0));
  Wide<F> step = wide(F(at.first - t.axis[2]->first)) - w.last_coordinate;
  NB_UNROLL for (int m = 0; m < M; ++m) {
    s[m] = s[m] - slope * max_of(step, zero - step);
    step = step + one;
  }
}
// The scores in units of log 2.
template <int M, bool kPairs, class F>
NB_INLINE void scores_of(const Worker<F>& w, const Tile<F>& t, const Piece& at, Wide<F> (&s)[M], Wide<F>* slope) {
  products_a<M, kPairs>(w, t, at.row, s);
  const Wide<F> scale = wide(w.scale_in);
  NB_UNROLL for (int m = 0; m < M; ++m) s[m] = s[m] * scale;
  if (w.p.softcap != 0) cap_scores<M>(w, s, slope);
  if (at.cell != kNoCell) add_to_scores<M>(w, t, at, s);
}

// A tile's sums.
template <class F>
inline RowList<F> sums(F* data, int width) {
  return {data, width, kInOrder};
}
// sum = sum * factor + weights times the columns' rows, for the lanes that may attend to them. Lanes without a run are
// not scaled: they have no new score, so their factor is 1, or their sums are 0.
template <class F>
inline void add_columns(const Worker<F>& w, F* sum, const Wide<F>* weights, const RowList<const F>& columns,
                        const F* factor = nullptr) {
  const long width = columns.width;
  int scaled = 0;  // lanes before this one are scaled: each is once, by its first run
  w.spans.each_run(w.count, [&](int lane, int lanes, int first, int count) {
    const F* const own = factor && lane >= scaled ? factor + lane : nullptr;
    scaled = lane + lanes;
    add_rows(sums(sum + lane * width, int(width)), lanes, {columns.data, width, columns.number + first}, count,
             {weights[first].numbers() + lane, 1, kLanes}, int(width), own);
  });
}
template <class F>
inline void clear(F* sums, int width) {
  for (int i = 0; i < kLanes * width; ++i) sums[i] = 0;
}

template <class F, bool kPairs>
struct Forward {
  static constexpr bool kForward = true;
  static constexpr F kNone = F(-INFINITY);

  static void begin(Worker<F>& w, Tile<F>& t, const Side& a, int sample) {
    w.load_factors(t, a, sample, t.rows_a, t.a);
    t.top = wide(kNone);
    t.total = wide(F(0));
    if (w.p.sink)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int head = min_of(t.head + w.coordinate[0][lane], w.p.heads - 1);
        t.top.lane(lane) = static_cast<const F*>(w.p.sink)[head] * F(kLog2E);
        t.total.lane(lane) = F(t.top.lane(lane) != kNone);
      }
    w.highest = wide(kNone);
    clear(t.sum_b, w.row_b);
  }

  template <int M>
  static void piece(Worker<F>& w, Tile<F>& t, const Gate<F>& gate, const Piece& at) {
    Wide<F> s[M];
    scores_of<M, kPairs>(w, t, at, s, static_cast<Wide<F>*>(nullptr));
    if (!at.whole) hide<M>(s, gate, at.first, kNone);
    Wide<F> highest = w.highest;
    NB_UNROLL for (int m = 0; m < M; ++m) highest = max_of(highest, s[m]);
    w.highest = highest;
    NB_UNROLL for (int m = 0; m < M; ++m) w.scores[w.count + m] = s[m];
  }

  NB_APART static void flush(Worker<F>& w, Tile<F>& t) {
    const Wide<F> top = max_of(t.top, w.highest);
    const Wide<F> base = where_below(top, -Exp2Most(), wide(F(0)));  // of a lane without a score, any number
    const Wide<F> alpha = exp2_of(t.top - base);
    Wide<F> total = t.total * alpha;
    for (int i = 0; i < w.count; ++i) {
      const Wide<F> weight = exp2_of(w.scores[i] - base);
      total = total + weight;
      w.scores[i] = weight;
    }
    add_columns(w, t.sum_b, w.scores, w.columns_b(), alpha.numbers());
    t.top = top;
    t.total = total;
    w.highest = wide(kNone);
    w.clear_scores();
  }

  static void finish(Worker<F>& w, Tile<F>& t, int sample) {
    Wide<F> factor;
    for (int lane = 0; lane < kLanes; ++lane) {
      const F total = t.total.lane(lane);
      factor.lane(lane) = total == 0 ? F(0) : 1 / total;
    }
    w.store(t, w.p.out, contiguous(w.p, w.p.heads, w.e, false), w.e, sample, t.sum_b, w.row_b, factor);
    if (!w.p.lse) return;
    long long at[kLanes];
    w.offsets(t, contiguous(w.p, w.p.heads, 1, false), sample, t.rows, at);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (at[lane] == kNowhere) continue;
      const F total = t.total.lane(lane);
      static_cast<F*>(w.p.lse)[at[lane]] = total == 0 ? kNone : F(kLn2) * (t.top.lane(lane) + F(log2(total)));
    }
  }

 private:
  static constexpr F Exp2Most() { return sizeof(F) == 4 ? F(3.4e38) : F(1.7e308); }
};
}  // namespace nb
