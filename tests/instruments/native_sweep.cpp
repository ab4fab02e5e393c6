// native_sweep.cpp - the traversal of the kernels of `cpu/` without their arithmetic: which rows meet which columns, and
// how often. It follows the text of kernels.cpp up to its C interface. Numbers of rows and columns are their places in
// the tensors, plus 1, so that what is loaded and copied is checked as well.
namespace {
struct Sweep {
  unsigned char* times;   // [rows, columns]
  unsigned char* written;  // [rows]
  long long columns;
  long long computed, copied, full, tiles, items;
  int wrong;
};
Sweep* now;

template <class F>
struct Count {  // a rule that counts
  template <int M>
  static void piece(nb::Worker<F>& w, nb::Tile<F>& t, const nb::Gate<F>& gate, const nb::Piece& at) {
    nb::Wide<F> one[M];
    for (int m = 0; m < M; ++m) one[m] = nb::wide(F(1));
    if (!at.whole) nb::hide<M>(one, gate, at.first, F(0));
    now->computed += M;
    now->full += at.whole * M;
    for (int m = 0; m < M; ++m) {
      const F a = w.packed_a[(at.row + m) * w.row_a], b = w.packed_b[(at.row + m) * w.row_b];
      const long long column = static_cast<long long>(a) - 1;
      if (column < 0 || column >= now->columns || b != a) now->wrong = 1;
      if (w.job.pass == nb::kGradKey)
        if (w.lse[at.row + m] != column || w.delta[at.row + m] != -column) now->wrong = 2;
      for (int lane = 0; lane < nb::kLanes; ++lane) {
        if (one[m].lane(lane) == 0 || !(t.rows & t.valid & 1u << lane)) continue;  // nothing is stored for it
        const long long row = static_cast<long long>(t.a[0].lane(lane)) - 1;
        ++now->times[row * now->columns + column];
      }
    }
  }
  static void flush(nb::Worker<F>& w, nb::Tile<F>&) { w.count = 0; }
};

template <bool kKeyRows, class F>
void tiles_of(nb::Worker<F>& w, const nb::Call& call, int sample, int head, int heads, int kv_head) {
  const int tiles = nb::set_tiles<kKeyRows>(w, head, heads);
  now->tiles += tiles;
  for (int n = 0; n < tiles; ++n) {
    nb::Tile<F>& t = w.tile[n];
    w.load(t, call.sides.row_a, sample, t.a);
    for (int lane = 0; lane < nb::kLanes; ++lane) {
      if (!(t.rows >> lane & 1)) continue;
      if (t.valid >> lane & 1) ++now->written[static_cast<long long>(t.a[0].lane(lane)) - 1];
      else if (t.a[0].lane(lane) != 0) now->wrong = 3;  // a row that may not be read
    }
  }
  const int first = kKeyRows ? kv_head * w.p.group : kv_head, last = kKeyRows ? first + w.p.group : first + 1;
  for (int other = first; other < last; ++other)
    nb::each_box(w, [&](const nb::Interval(&box)[3]) {
      const long size = long(box[0].size()) * box[1].size() * box[2].size();
      if (size < 1 || size > w.capacity || !tiles) {  // of no tiles: columns for nothing
        now->wrong = tiles ? 4 : 5;
        return;
      }
      now->copied += size;
      w.pack(call.sides.column_a, call.sides.column_b, box, sample, other);
      for (int n = 0; n < tiles; ++n) nb::visit<Count<F>>(w, w.tile[n], box);
    });
}

template <bool kKeyRows, class F>
void sweep(const nb::Job& job, long capacity) {
  nb::Call call = {job, nb::sides_of(job), {}, 1, job.params.heads / job.params.group, 0, 0, 0};
  long volume = 1;
  for (int axis = 0; axis < 3; ++axis) volume *= call.groups[axis] = nb::groups_of(job, axis, kKeyRows);
  nb::Worker<F> w(job);
  w.capacity = capacity;
  const long bytes = w.bytes();
  char* const memory = static_cast<char*>(aligned_alloc(64, bytes + 64));
  memset(memory, 0xff, bytes);
  w.lay_out(memory);
  for (nb::AxisGroup<F>& group : w.group) group.run[0] = group.run[1] = {0, 1};  // of an item before
  const int heads = kKeyRows ? 1 : job.tile[0] * job.group[0];
  // From the last item on: what a thread finds must not depend on what it did before.
  for (int sample = job.params.batch - 1; sample >= 0; --sample)
    for (long n = volume - 1; n >= 0; --n) {
      nb::begin_groups<kKeyRows>(w, call, n, sample);
      for (int kv_head = 0; kv_head < call.kv_heads; ++kv_head)
        for (int first = 0; first < (kKeyRows ? 1 : job.params.group); first += heads) {
          ++now->items;
          const int some = nb::min_of(heads, job.params.group - first);
          tiles_of<kKeyRows>(w, call, sample, kKeyRows ? kv_head : kv_head * job.params.group + first,
                             kKeyRows ? 1 : some, kv_head);
        }
    }
  free(memory);
}
}  // namespace

extern "C" __attribute__((visibility("default"))) void sweep_pairs(const nb::Job* job, long capacity, Sweep* into) {
  now = into;
  const bool keys = job->pass == nb::kGradKey, wide = job->type == nb::kDouble;
  if (keys && wide) sweep<true, double>(*job, capacity);
  else if (keys) sweep<true, float>(*job, capacity);
  else if (wide) sweep<false, double>(*job, capacity);
  else sweep<false, float>(*job, capacity);
}
