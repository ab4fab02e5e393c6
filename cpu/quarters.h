// quarters.h - which quarters of a tile, four neighbouring lanes each, attend to which of its scores: of the lines of a
// window on two or three axes many quarters attend to none, and sums leave these out.
#pragma once
#include "tiles.h"

namespace nb {
constexpr unsigned kAllQuarters = (1u << kQuarters) - 1;

// The quarters that have column x of a run on an axis.
inline unsigned quarters_of(const Interval (&quarter)[kQuarters], int x) {
  unsigned some = 0;
  for (int q = 0; q < kQuarters; ++q) some |= unsigned(quarter[q].has(x)) << q;
  return some;
}

// The scores since the last flush, in spans that the same quarters attend to.
struct Spans {
  struct Span {
    int first;  // score
    unsigned quarters;
  };
  Span* span;
  int count = 0;
  unsigned differ = 0;  // bit q: quarter q and the next one attend to different scores

  void add(int first, unsigned quarters) {
    if (count && span[count - 1].quarters == quarters) return;
    span[count++] = {first, quarters};
    differ |= quarters ^ (quarters >> 1);
  }
  void clear() {
    count = 0;
    differ = 0;
  }
  int stop(int n, int scores) const { return n + 1 < count ? span[n + 1].first : scores; }

  // Calls use(lane, lanes, first, count) for each span of all scores, with the lanes from its first quarter to its last:
  // those between have weights of 0.
  template <class Use>
  void each_span(int scores, const Use& use) const {
    for (int n = 0; n < count; ++n) {
      const unsigned quarters = span[n].quarters;
      int lo = 0, hi = kQuarters;
      while (!(quarters >> lo & 1)) ++lo;
      while (!(quarters >> (hi - 1) & 1)) --hi;
      use(lo * kQuarterLanes, (hi - lo) * kQuarterLanes, span[n].first, stop(n, scores) - span[n].first);
    }
  }
  // The same for each run of scores of some lanes. Neighbouring quarters that attend to the same scores go together.
  template <class Use>
  void each_run(int scores, const Use& use) const {
    for (int q = 0, next; q < kQuarters; q = next) {
      for (next = q + 1; next < kQuarters && !(differ >> (next - 1) & 1);) ++next;
      for (int n = 0; n < count; ++n) {
        if (!(span[n].quarters >> q & 1)) continue;
        const int first = span[n].first;
        while (n + 1 < count && (span[n + 1].quarters >> q & 1)) ++n;
        use(q * kQuarterLanes, (next - q) * kQuarterLanes, first, stop(n, scores) - first);
      }
    }
  }
};
}  // namespace nb
