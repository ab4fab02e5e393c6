// kernels.cpp - attention with any mask on a CPU: the work items of a call, and the library's C interface.
#include "added.h"
#include "backward.h"

namespace nb {
constexpr int kAhead = 2;  // tiles whose rows are asked for before they are needed

// The tiles of a group of the key head's query heads from `head` on; returns how many there are.
template <bool kKeyRows, class F>
inline int set_tiles(Worker<F>& w, int head, int heads) {
  const Job& job = w.job;
  const int per_tile = kKeyRows ? 1 : job.tile[0];
  int n = 0;
  for (int first = 0; first < heads; first += per_tile) {
    unsigned real = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      real |= unsigned(kKeyRows || first + w.coordinate[0][lane] < heads) << lane;
    for (int z = 0; z < w.group[0].tiles; ++z)
      for (int y = 0; y < w.group[1].tiles; ++y)
        for (int x = 0; x < w.group[2].tiles; ++x) {
          Tile<F>& t = w.tile[n++];
          const int at[3] = {z, y, x};
          t.rows = t.valid = real;
          for (int axis = 0; axis < 3; ++axis) {
            t.axis[axis] = &w.group[axis].tile[at[axis]];
            t.rows &= t.axis[axis]->rows;
            t.valid &= t.axis[axis]->valid;
          }
          t.head = head + first;
          t.added = false;
          t.bias = nullptr;
          t.bias_sums = nullptr;
        }
  }
  return n;
}

// The columns that are extra keys: every lane of every tile attends to them.
template <class Rule, class F>
inline void visit_extra(Worker<F>& w, const Call& call, int tiles, int sample, int kv_head) {
  const Side &a = call.sides.extra_a, &b = call.sides.extra_b;
  const Gate<F> gate = {};
  const Interval every[2] = {{0, kFar}, {0, 0}};
  const Interval read = extra_of(w.p, sample);
  for (int first = read.lo; first < read.hi; first += int(w.capacity)) {
    const int count = min_of(int(w.capacity), read.hi - first);
    for (int i = 0; i < count; ++i) {
      const long long at_a = sample * a.stride.batch + kv_head * a.stride.head + (first + i) * a.stride.axis[2];
      const long long at_b = sample * b.stride.batch + kv_head * b.stride.head + (first + i) * b.stride.axis[2];
      w.pack_rows(a, b, &at_a, &at_b, 1, i);
    }
    for (int n = 0; n < tiles; ++n) {
      visit_line<Rule>(w, w.tile[n], gate, {0, 0, count, true, kAllQuarters, kNoCell}, every);
      if (w.count) Rule::flush(w, w.tile[n]);
    }
  }
}

// Asks for the rows of tile n, if there is one and they are far.
template <class F>
inline void fetch_tile(const Worker<F>& w, const Sides& s, const Side& a, const Side& b, int n, int tiles, int sample) {
  if (n >= tiles || !w.far) return;
  w.fetch(w.tile[n], a, sample);
  if (w.job.pass != kForward) w.fetch(w.tile[n], b, sample);
  if (w.job.pass == kGradQuery || w.job.pass == kGradAll) w.fetch(w.tile[n], s.out, sample);
}
template <class Rule, class F>
inline void visit_all(Worker<F>& w, const Call& call, int tiles, int sample, int head) {
  each_box(w.columns, w.capacity, [&](const Interval(&box)[3]) {
    w.pack(call.sides.column_a, call.sides.column_b, box, sample, head);
    if (w.adds_to_columns()) w.clear_column_sums(box);
    for (int n = 0; n < tiles; ++n) visit<Rule>(w, w.tile[n], box);
    if (w.adds_to_columns()) w.add_column_sums(call.sides.grad_a, call.sides.grad_b, box, sample, head);
  });
}

// A group of queries whose axes are set up, of some query heads of a key head.
template <class Rule, class F>
inline void run_queries(Worker<F>& w, const Call& call, const Place& at, int head_group) {
  const int heads = w.job.tile[0] * w.job.group[0], first = head_group * heads, sample = at.sample;
  const int tiles = set_tiles<false>(w, at.kv_head * w.p.group + first, min_of(heads, w.p.group - first));
  set_added<false>(w, call, tiles, sample, 0);
  const Side &a = call.sides.row_a, &b = call.sides.row_b;
  for (int n = 0; n < kAhead; ++n) fetch_tile(w, call.sides, a, b, n, tiles, sample);
  for (int n = 0; n < tiles; ++n) {
    fetch_tile(w, call.sides, a, b, n + kAhead, tiles, sample);
    if constexpr (Rule::kForward) Rule::begin(w, w.tile[n], a, sample);
    else Rule::begin(w, w.tile[n], a, b, call.sides.out, sample);
  }
  visit_extra<Rule>(w, call, tiles, sample, at.kv_head);
  visit_all<Rule>(w, call, tiles, sample, at.kv_head);
  for (int n = 0; n < tiles; ++n) Rule::finish(w, w.tile[n], sample);
}
// A group of keys whose axes are set up, or extra keys.
template <class Rule, class F>
inline void run_keys(Worker<F>& w, const Call& call, const Place& at, bool extra) {
  const Params& p = w.p;
  const int tiles = set_tiles<true>(w, at.kv_head, 1), sample = at.sample, first = at.kv_head * p.group;
  const Side &a = extra ? call.sides.extra_a : call.sides.row_a, &b = extra ? call.sides.extra_b : call.sides.row_b;
  for (int n = 0; n < kAhead; ++n) fetch_tile(w, call.sides, a, b, n, tiles, sample);
  for (int n = 0; n < tiles; ++n) {
    fetch_tile(w, call.sides, a, b, n + kAhead, tiles, sample);
    Rule::begin(w, w.tile[n], a, b, sample);
  }
  for (int head = first; head < first + p.group; ++head) {
    if (!extra) set_added<true>(w, call, tiles, sample, head);
    visit_all<Rule>(w, call, tiles, sample, head);
  }
  for (int n = 0; n < tiles; ++n) {
    if (extra)
      Rule::finish(w, w.tile[n], p.grad_extra_key, p.grad_extra_value, a.stride, b.stride, sample);
    else
      Rule::finish(w, w.tile[n], p.grad_key, p.grad_value, contiguous(p, call.kv_heads, w.d, true),
                   contiguous(p, call.kv_heads, w.e, true), sample);
  }
}

// Asks for the rows and columns of a group that comes soon.
template <bool kKeyRows, class F>
inline void look_ahead(Worker<F>& w, const Call& call, const Place& place, const int (&number)[3]) {
  AxisRuns rows[3], columns[3];
  for (int axis = 0; axis < 3; ++axis) {
    const GroupRows<kKeyRows> group(call.job, axis, number[axis], place.sample);
    rows[axis] = group.rows();
    columns[axis] = group.columns();
  }
  const Sides& s = call.sides;
  const int query_head = place.kv_head * w.p.group;
  const bool backward = w.job.pass != kForward, outputs = backward && !kKeyRows;
  w.look_ahead(0, rows, place.sample, kKeyRows ? place.kv_head : query_head,
               {&s.row_a, backward ? &s.row_b : nullptr, outputs ? &s.out : nullptr});
  w.look_ahead(1, columns, place.sample, kKeyRows ? query_head : place.kv_head, {&s.column_a, &s.column_b, nullptr});
}
// Sets up the axes of a group; those of the group before are kept.
template <bool kKeyRows, class F>
inline void begin_groups(Worker<F>& w, const Call& call, const Place& place, const int (&at)[3]) {
  for (int axis = 0; axis < 3; ++axis) {
    const long sample = w.p.key_range ? place.sample : 0;  // else all samples have the same groups
    const long number = sample * call.classes[axis] * call.groups[axis] + at[axis];
    if (w.group_number[axis] == number) continue;
    w.group_number[axis] = number;
    begin_group<kKeyRows>(w.group[axis], w.columns[axis], w.job, w.coordinate[axis + 1], axis, at[axis], place.sample);
  }
}
// The groups of an item, one after the other, so that sums of their columns have one order; `likely` is probably the
// next item of this thread, in `soon`.
template <class Rule, bool kKeyRows, class F>
inline void run_item(Worker<F>& w, const Call& call, long item, const Call& soon, const Place& likely) {
  const Place place = place_of(call, item);
  const int first_of_likely[3] = {likely.group[0].lo, likely.group[1].lo, likely.group[2].lo};
  int at[3] = {place.group[0].lo, place.group[1].lo, place.group[2].lo};
  for (bool more = true; more;) {
    begin_groups<kKeyRows>(w, call, place, at);
    more = advance(at, place);
    if (w.far && more) look_ahead<kKeyRows>(w, call, place, at);
    else if (w.far && likely.heads.size()) look_ahead<kKeyRows>(w, soon, likely, first_of_likely);
    if constexpr (kKeyRows) run_keys<Rule>(w, call, place, false);
    else
      for (int heads = place.heads.lo; heads < place.heads.hi; ++heads) run_queries<Rule>(w, call, place, heads);
  }
}
// Items in front of the others: tiles of extra keys.
template <class Rule, class F>
inline void run_extra(Worker<F>& w, const Call& call, long item) {
  const int tiles = ceil_div(w.p.extra, kLanes);
  Place place;
  place.kv_head = int(item % call.kv_heads);
  item /= call.kv_heads;
  place.sample = int(item / tiles);
  for (int axis = 0; axis < 3; ++axis) {
    w.group_number[axis] = -1;
    begin_extra_group(w.group[axis], w.columns[axis], w.p, axis, int(item % tiles) * kLanes,
                      extra_of(w.p, place.sample));
  }
  w.ahead[0].rows.left = w.ahead[1].rows.left = 0;
  run_keys<Rule>(w, call, place, true);
}

template <class F, bool kPairs>
inline void run_any_item(Worker<F>& w, const Call& call, long item, const Call& soon, const Place& likely) {
  if (call.job.pass == kForward) run_item<Forward<F, kPairs>, false>(w, call, item, soon, likely);
  else if (call.job.pass == kGradQuery) run_item<GradQuery<F, kPairs>, false>(w, call, item, soon, likely);
  else if (call.job.pass == kGradKey && item < call.extra_items) run_extra<GradKey<F, kPairs>>(w, call, item);
  else if (call.job.pass == kGradKey) run_item<GradKey<F, kPairs>, true>(w, call, item, soon, likely);
  else if constexpr (!kPairs) run_item<GradAll<F>, false>(w, call, item, soon, likely);
}
template <class F, bool kPairs>
static void work(void* data) {
  Queue& queue = *static_cast<Queue*>(data);
  Present at(queue), soon(queue);  // soon: the item after those that other threads are about to take
  const Call& call = at.call;
  Worker<F> w(at.job, queue.added.table);
  w.lay_out(kept_memory(scratch_key, w.bytes()));
  for (long number; (number = __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED)) < queue.units;) {
    const Unit unit = queue.unit(number);
    if (queue.added.slots) memset(w.cell_sums, 0, w.table_tiles * queue.added.table.cells * sizeof(Wide<F>));
    for (long next = unit.first; next < unit.stop; next += unit.step) {
      if (at.enters(queue, next)) w.enter(at.alike);
      Place likely = {};
      if (w.far) likely = soon.place(queue, next + (next + unit.step < unit.stop ? unit.step : queue.threads));
      run_any_item<F, kPairs>(w, call, next - queue.first[at.number], soon.call, likely);
    }
    if (queue.added.slots) add_to_slot(w, queue, number);
  }
}

}  // namespace nb

#define NB_EXPORT extern "C" __attribute__((visibility("default")))
NB_EXPORT int nb_native_version() { return 1; }
NB_EXPORT int nb_native_lanes() { return nb::kVectorBytes / 4; }
NB_EXPORT void nb_native_run(const nb::Job* job) {
  using namespace nb;
  void (*run)(void*) = job->type == kDouble ? work<double, false> : work<float, false>;
  if constexpr (kHasPairs)
    if (job->type == kBfloat) run = work<float, true>;
  ask_for_large_pages(*job);
  if (job->pass == kGradAll) clear_gradients(*job);
  Queue queue(*job);
  const bool doubles = job->type == kDouble;
  doubles ? begin_table<double>(queue) : begin_table<float>(queue);
  for (int phase = 0; phase < (job->pass == kGradAll ? 2 : 1); ++phase) {
    queue.begin(phase);
    if (queue.items) run_on(queue.threads, run, &queue);
  }
  doubles ? end_table<double>(queue) : end_table<float>(queue);
}
