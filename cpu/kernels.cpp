// kernels.cpp - attention with any mask on a CPU: the work items of a call, and the library's C interface.
#include <stdlib.h>
#include <sys/mman.h>

#include "backward.h"
#include "pool.h"

namespace nb {
// A call's tensors: those of rows (the lanes) and of columns, [D] and [E] numbers a row.
struct Sides {
  Side row_a, row_b, column_a, column_b, extra_a, extra_b, out, grad_a, grad_b;  // the last two of columns
};
inline Sides sides_of(const Job& job) {
  const Params& p = job.params;
  const int d = job.head_dim, e = job.value_dim, kv_heads = p.heads / p.group;
  const Side query = {p.query, p.query_stride, d}, key = {p.key, p.key_stride, d}, value = {p.value, p.value_stride, e},
             grad_out = {p.grad_out, p.grad_out_stride, e}, extra_key = {p.extra_key, of_extra(p, kv_heads, d), d},
             extra_value = {p.extra_value, of_extra(p, kv_heads, e), e}, out = {p.out, contiguous(p, p.heads, e, false), e},
             grad_key = {p.grad_key, contiguous(p, kv_heads, d, true), d},
             grad_value = {p.grad_value, contiguous(p, kv_heads, e, true), e};
  if (job.pass == kGradKey) return {key, value, query, grad_out, extra_key, extra_value, out, {}, {}};
  return {query, grad_out, key, value, extra_key, extra_value, out, grad_key, grad_value};
}

constexpr int kAhead = 2;  // tiles whose rows are asked for before they are needed

struct Call {
  const Job& job;
  Sides sides;
  int groups[3], head_groups, kv_heads;
  long extra_items, items, next;
  int slabs[3], phase;  // kGradAll: slabs of a class; on the axis where there are several, every other one runs
};

// The boxes of columns that a group packs, one after the other, as large as fit.
template <class F, class Use>
inline void each_box(const Worker<F>& w, const Use& use) {
  for (const Interval& z : w.group[0].run)
    for (const Interval& y : w.group[1].run)
      for (const Interval& x : w.group[2].run) {
        const Interval run[3] = {z, y, x};
        int step[3];
        long room = w.capacity;
        bool empty = false;
        for (int axis = 2; axis >= 0; --axis) {
          const int size = run[axis].size(), most = int(room < 1 ? 1 : room < size ? room : size);
          empty = empty || size == 0;
          if (empty) break;
          step[axis] = ceil_div(size, ceil_div(size, most));
          room /= step[axis];
        }
        if (empty) continue;
        Interval box[3];
        for (box[0].lo = z.lo; box[0].lo < z.hi; box[0].lo = box[0].hi) {
          box[0].hi = min_of(z.hi, box[0].lo + step[0]);
          for (box[1].lo = y.lo; box[1].lo < y.hi; box[1].lo = box[1].hi) {
            box[1].hi = min_of(y.hi, box[1].lo + step[1]);
            for (box[2].lo = x.lo; box[2].lo < x.hi; box[2].lo = box[2].hi) {
              box[2].hi = min_of(x.hi, box[2].lo + step[2]);
              use(box);
            }
          }
        }
      }
}

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
  for (int first = 0; first < w.p.extra; first += int(w.capacity)) {
    const int count = min_of(int(w.capacity), w.p.extra - first);
    for (int i = 0; i < count; ++i) {
      const long long at_a = sample * a.stride.batch + kv_head * a.stride.head + (first + i) * a.stride.axis[2];
      const long long at_b = sample * b.stride.batch + kv_head * b.stride.head + (first + i) * b.stride.axis[2];
      w.pack_rows(a, b, &at_a, &at_b, 1, i);
    }
    for (int n = 0; n < tiles; ++n) {
      visit_line<Rule>(w, w.tile[n], gate, 0, 0, count, true, every);
      if (w.count) Rule::flush(w, w.tile[n]);
    }
  }
}

// Asks for the rows of tile n, if there is one.
template <class F>
inline void fetch_tile(const Worker<F>& w, const Sides& s, const Side& a, const Side& b, int n, int tiles, int sample) {
  if (n >= tiles) return;
  w.fetch(w.tile[n], a, sample);
  if (w.job.pass != kForward) w.fetch(w.tile[n], b, sample);
  if (w.job.pass == kGradQuery || w.job.pass == kGradAll) w.fetch(w.tile[n], s.out, sample);
}
// Asks for the first columns of a group.
template <class F>
inline void fetch_columns(const Worker<F>& w, const Sides& s, int sample, int head) {
  Interval box[3];
  for (int axis = 0; axis < 3; ++axis) {
    const Interval(&run)[2] = w.group[axis].run;
    box[axis] = run[0].size() ? run[0] : run[1];
  }
  w.fetch_box(s.column_a, s.column_b, box, sample, head);
}

template <class Rule, class F>
inline void visit_all(Worker<F>& w, const Call& call, int tiles, int sample, int head) {
  each_box(w, [&](const Interval(&box)[3]) {
    w.pack(call.sides.column_a, call.sides.column_b, box, sample, head);
    if (w.adds_to_columns()) w.clear_column_sums(box);
    for (int n = 0; n < tiles; ++n) visit<Rule>(w, w.tile[n], box);
    if (w.adds_to_columns()) w.add_column_sums(call.sides.grad_a, call.sides.grad_b, box, sample, head);
  });
}

// Sets up one axis of a spatial group, unless it is the last one.
template <bool kKeyRows, class F>
inline void begin_axis(Worker<F>& w, const Call& call, int axis, int number, int sample) {
  const long key = long(sample) * call.groups[axis] + number;
  if (key == w.group_number[axis]) return;
  w.group_number[axis] = key;
  begin_group<kKeyRows>(w.group[axis], w.job, w.coordinate[axis + 1], axis, number, sample);
}
template <bool kKeyRows, class F>
inline void begin_groups(Worker<F>& w, const Call& call, long number, int sample) {
  for (int axis = 2; axis >= 0; number /= call.groups[axis--])
    begin_axis<kKeyRows>(w, call, axis, int(number % call.groups[axis]), sample);
}

// A group of queries whose axes are set up, of some query heads of a key head.
template <class Rule, class F>
inline void run_group(Worker<F>& w, const Call& call, int sample, int kv_head, int head_group) {
  const Params& p = w.p;
  const int heads_of_group = w.job.tile[0] * w.job.group[0], first = head_group * heads_of_group;
  const int tiles = set_tiles<false>(w, kv_head * p.group + first, min_of(heads_of_group, p.group - first));
  const Side &a = call.sides.row_a, &b = call.sides.row_b;
  if (tiles == 0) return;
  for (int n = 0; n < kAhead; ++n) fetch_tile(w, call.sides, a, b, n, tiles, sample);
  fetch_columns(w, call.sides, sample, kv_head);
  for (int n = 0; n < tiles; ++n) {
    fetch_tile(w, call.sides, a, b, n + kAhead, tiles, sample);
    if constexpr (Rule::kForward) Rule::begin(w, w.tile[n], a, sample);
    else Rule::begin(w, w.tile[n], a, b, call.sides.out, sample);
  }
  visit_extra<Rule>(w, call, tiles, sample, kv_head);
  visit_all<Rule>(w, call, tiles, sample, kv_head);
  for (int n = 0; n < tiles; ++n) Rule::finish(w, w.tile[n], sample);
}
template <class Rule, class F>
inline void run_queries(Worker<F>& w, const Call& call, long item) {
  const int kv_head = int(item % call.kv_heads);
  item /= call.kv_heads;
  const int head_group = int(item % call.head_groups);
  item /= call.head_groups;
  const long volume = long(call.groups[0]) * call.groups[1] * call.groups[2];
  const int sample = int(item / volume);
  begin_groups<false>(w, call, item % volume, sample);
  run_group<Rule>(w, call, sample, kv_head, head_group);
}

// How many slabs of a class run in a phase: all of them, or every other one.
inline int slabs_of(const Call& call, int axis) {
  return call.slabs[axis] == 1 ? 1 : (call.slabs[axis] + 1 - call.phase) / 2;
}
// A slab: neighbouring groups of a class, one after the other, so that sums of their columns have one order.
template <class Rule, class F>
inline void run_slab(Worker<F>& w, const Call& call, long item) {
  const int kv_head = int(item % call.kv_heads);
  item /= call.kv_heads;
  Interval groups[3];
  for (int axis = 2; axis >= 0; --axis) {
    const int slabs = slabs_of(call, axis), classes = classes_of(w.job, axis, false);
    const int per_class = call.groups[axis] / classes, at = int(item % slabs);
    const int first = w.job.slab[axis] * (call.slabs[axis] == 1 ? at : 2 * at + call.phase);
    item /= slabs;
    const int start = int(item % classes) * per_class;
    groups[axis] = {start + first, start + min_of(first + w.job.slab[axis], per_class)};
    item /= classes;
  }
  const int sample = int(item);
  for (int z = groups[0].lo; z < groups[0].hi; ++z)
    for (int y = groups[1].lo; y < groups[1].hi; ++y)
      for (int x = groups[2].lo; x < groups[2].hi; ++x) {
        begin_axis<false>(w, call, 0, z, sample);
        begin_axis<false>(w, call, 1, y, sample);
        begin_axis<false>(w, call, 2, x, sample);
        for (int heads = 0; heads < call.head_groups; ++heads) run_group<Rule>(w, call, sample, kv_head, heads);
      }
}

template <class Rule, class F>
inline void run_keys(Worker<F>& w, const Call& call, long item) {
  const Params& p = w.p;
  const bool extra = item < call.extra_items;
  if (!extra) item -= call.extra_items;
  const int kv_head = int(item % call.kv_heads);
  item /= call.kv_heads;
  const long volume = extra ? ceil_div(p.extra, kLanes) : long(call.groups[0]) * call.groups[1] * call.groups[2];
  const int sample = int(item / volume);
  if (extra) {
    for (int axis = 0; axis < 3; ++axis) {
      w.group_number[axis] = -1;
      begin_extra_group(w.group[axis], p, axis, int(item % volume) * kLanes);
    }
  } else {
    begin_groups<true>(w, call, item % volume, sample);
  }
  const int tiles = set_tiles<true>(w, kv_head, 1);
  const Side &a = extra ? call.sides.extra_a : call.sides.row_a, &b = extra ? call.sides.extra_b : call.sides.row_b;
  if (tiles == 0) return;
  for (int n = 0; n < kAhead; ++n) fetch_tile(w, call.sides, a, b, n, tiles, sample);
  fetch_columns(w, call.sides, sample, kv_head * p.group);
  for (int n = 0; n < tiles; ++n) {
    fetch_tile(w, call.sides, a, b, n + kAhead, tiles, sample);
    Rule::begin(w, w.tile[n], a, b, sample);
  }
  for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; ++head) visit_all<Rule>(w, call, tiles, sample, head);
  for (int n = 0; n < tiles; ++n) {
    if (extra)
      Rule::finish(w, w.tile[n], p.grad_extra_key, p.grad_extra_value, a.stride, b.stride, sample);
    else
      Rule::finish(w, w.tile[n], p.grad_key, p.grad_value, contiguous(p, call.kv_heads, w.d, true),
                   contiguous(p, call.kv_heads, w.e, true), sample);
  }
}

// A thread's scratch memory: it grows, is kept for the next call, and ends with the thread.
static pthread_key_t scratch_key;
__attribute__((constructor)) static void make_scratch_key() { pthread_key_create(&scratch_key, free); }
struct Scratch {
  long bytes;
  char pad[56];
};
static char* scratch(long bytes) {
  Scratch* own = static_cast<Scratch*>(pthread_getspecific(scratch_key));
  if (!own || own->bytes < bytes) {
    free(own);
    pthread_setspecific(scratch_key, nullptr);
    own = static_cast<Scratch*>(aligned_alloc(64, (sizeof(Scratch) + bytes + 63) / 64 * 64));
    if (!own) abort();
    own->bytes = bytes;
    pthread_setspecific(scratch_key, own);
  }
  return reinterpret_cast<char*>(own + 1);
}

// Asks for large pages under a new tensor of `rows` rows: each first touch of a small one is a fault, and faults of
// several threads wait for each other. Only from 32 MiB on, where the C library maps memory that ends with the tensor:
// else later tensors would take the pages, whole ones for a part.
static void ask_for_large_pages(void* data, long long rows, int length, int type) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const long long bytes = rows * length * (type == kDouble ? 8 : type == kFloat ? 4 : 2);
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage,
                  stop = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  if (data && bytes >= 32 << 20) madvise(reinterpret_cast<void*>(first), stop - first, MADV_HUGEPAGE);
#endif
}
static void ask_for_large_pages(const Job& job) {
  const Params& p = job.params;
  long long queries = p.batch * (long long)(p.heads), keys = queries / p.group;
  for (const Held& held : p.held) {
    queries *= held.queries;
    keys *= held.keys;
  }
  if (job.pass == kForward) ask_for_large_pages(p.out, queries, job.value_dim, job.type);
  if (job.pass == kGradQuery || job.pass == kGradAll) ask_for_large_pages(p.grad_query, queries, job.head_dim, job.type);
  if (job.pass == kGradKey || job.pass == kGradAll) {
    ask_for_large_pages(p.grad_key, keys, job.head_dim, job.type);
    ask_for_large_pages(p.grad_value, keys, job.value_dim, job.type);
  }
}

template <class F, bool kPairs>
static void work(void* data) {
  Call& call = *static_cast<Call*>(data);
  Worker<F> w(call.job);
  w.lay_out(scratch(w.bytes()));
  for (long item; (item = __atomic_fetch_add(&call.next, 1, __ATOMIC_RELAXED)) < call.items;) {
    if (call.job.pass == kForward) run_queries<Forward<F, kPairs>>(w, call, item);
    else if (call.job.pass == kGradQuery) run_queries<GradQuery<F, kPairs>>(w, call, item);
    else if (call.job.pass == kGradKey) run_keys<GradKey<F, kPairs>>(w, call, item);
    else if constexpr (!kPairs) run_slab<GradAll<F>>(w, call, item);
  }
}

// Sets the gradients of keys and values to zero, a part at a time.
struct Zeros {
  char* data[2];
  long bytes[2], next;
};
static void fill(void* data) {
  constexpr long kPart = 1 << 20;
  Zeros& zeros = *static_cast<Zeros*>(data);
  for (long at; (at = __atomic_fetch_add(&zeros.next, kPart, __ATOMIC_RELAXED)) < max_of(zeros.bytes[0], zeros.bytes[1]);)
    for (int i = 0; i < 2; ++i)
      if (at < zeros.bytes[i]) memset(zeros.data[i] + at, 0, min_of(kPart, zeros.bytes[i] - at));
}
static void clear_gradients(const Job& job, int threads) {
  const Params& p = job.params;
  long keys = long(p.batch) * (p.heads / p.group) * (job.type == kDouble ? 8 : 4);
  for (const Held& held : p.held) keys *= held.keys;
  Zeros zeros = {{static_cast<char*>(p.grad_key), static_cast<char*>(p.grad_value)},
                 {keys * job.head_dim, keys * job.value_dim},
                 0};
  run_on(threads, fill, &zeros);
}
}  // namespace nb

#define NB_EXPORT extern "C" __attribute__((visibility("default")))
NB_EXPORT int nb_native_version() { return 1; }
NB_EXPORT int nb_native_lanes() { return nb::kVectorBytes / 4; }
NB_EXPORT void nb_native_run(const nb::Job* job) {
  using namespace nb;
  const Params& p = job->params;
  const bool keys = job->pass == kGradKey;
  Call call = {*job, sides_of(*job), {}, 1, p.heads / p.group, 0, 0, 0, {1, 1, 1}, 0};
  call.items = long(p.batch) * call.kv_heads;
  for (int axis = 0; axis < 3; ++axis) call.items *= call.groups[axis] = groups_of(*job, axis, keys);
  if (keys) {
    call.extra_items = long(p.batch) * call.kv_heads * ceil_div(p.extra, kLanes);
  } else {
    call.head_groups = ceil_div(p.group, job->tile[0] * job->group[0]);
    call.items *= call.head_groups;
  }
  call.items += call.extra_items;
  const long threads = call.items < job->threads ? call.items : job->threads;
  void (*run)(void*) = job->type == kDouble ? work<double, false> : work<float, false>;
  if constexpr (kHasPairs)
    if (job->type == kBfloat) run = work<float, true>;
  ask_for_large_pages(*job);
  if (job->pass != kGradAll) return run_on(int(threads), run, &call);
  clear_gradients(*job, job->threads);
  const long others = long(p.batch) * call.kv_heads;
  int phases = 1;
  for (int axis = 0; axis < 3; ++axis) {
    call.slabs[axis] = ceil_div(call.groups[axis] / classes_of(*job, axis, false), job->slab[axis]);
    if (call.slabs[axis] > 1) phases = 2;
  }
  for (; call.phase < phases; ++call.phase) {
    call.items = others;
    call.next = 0;
    for (int axis = 0; axis < 3; ++axis) call.items *= slabs_of(call, axis) * classes_of(*job, axis, false);
    run_on(int(min_of(call.items, long(job->threads))), run, &call);
  }
}
