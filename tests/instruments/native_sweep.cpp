// native_sweep.cpp - the traversal of the kernels of `cpu/` without their arithmetic: which rows meet which columns, and
// how often. It follows the text of kernels.cpp up to its C interface. Numbers of rows and columns are their places in
// the tensors, plus 1, so that what is loaded and copied is checked as well.
namespace {
struct Sweep {
  unsigned char* times;   // [rows, columns]
  unsigned char* written;  // [rows]
  long long* owners;       // [columns]
  long long columns;
  long long computed, summed, copied, full, tiles, items;
  int wrong;
};
Sweep* now;
unsigned lanes_of[nb::kScores];  // that attend to each score since the last flush

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
      lanes_of[w.count + m] = 0;
      for (int lane = 0; lane < nb::kLanes; ++lane) {
        if (one[m].lane(lane) == 0 || !(t.rows & t.valid & 1u << lane)) continue;  // nothing is stored for it
        const long long row = static_cast<long long>(t.a[0].lane(lane)) - 1;
        ++now->times[row * now->columns + column];
        lanes_of[w.count + m] |= 1u << lane;
      }
    }
  }
  // Sums must have each lane's scores, none of them twice.
  static void flush(nb::Worker<F>& w, nb::Tile<F>&) {
    unsigned of_runs[nb::kScores] = {}, of_spans[nb::kScores] = {};
    const auto mark = [&](unsigned* to, int lane, int lanes, int first, int count) {
      const unsigned these = ((1u << lanes) - 1) << lane;
      for (int i = first; i < first + count; ++i) {
        if (i >= w.count || to[i] & these) now->wrong = 8;
        else to[i] |= these;
      }
    };
    w.spans.each_run(w.count, [&](auto... run) { mark(of_runs, run...); });
    w.spans.each_span(w.count, [&](auto... span) { mark(of_spans, span...); });
    for (int i = 0; i < w.count; ++i) {
      if (lanes_of[i] & ~(of_runs[i] & of_spans[i])) now->wrong = 9;
      now->summed += __builtin_popcount(of_runs[i]);
    }
    w.clear_scores();
  }
};

// Columns of which an item has sums: no other one may have any at that time.
template <class F>
void own(const nb::Worker<F>& w, long rows, long item) {
  for (long i = 0; i < rows; ++i) {
    long long& owner = now->owners[static_cast<long long>(w.packed_a[i * w.row_a]) - 1];
    if (owner && owner != item + 1) now->wrong = 6;
    owner = item + 1;
  }
}

template <bool kKeyRows, class F>
void tiles_of(nb::Worker<F>& w, const nb::Call& call, const nb::Place& place, int heads, long item) {
  const int per_group = w.job.tile[0] * w.job.group[0], group = w.job.params.group;
  const int tiles = kKeyRows ? nb::set_tiles<true>(w, place.kv_head, 1)
                             : nb::set_tiles<false>(w, place.kv_head * group + heads * per_group,
                                                    nb::min_of(per_group, group - heads * per_group));
  now->tiles += tiles;
  for (int n = 0; n < tiles; ++n) {
    nb::Tile<F>& t = w.tile[n];
    w.load(t, call.sides.row_a, place.sample, t.rows_a, t.a);
    for (int lane = 0; lane < nb::kLanes; ++lane) {
      if (!(t.rows >> lane & 1)) continue;
      if (t.valid >> lane & 1) ++now->written[static_cast<long long>(t.a[0].lane(lane)) - 1];
      else if (t.a[0].lane(lane) != 0) now->wrong = 3;  // a row that may not be read
    }
  }
  const int first = kKeyRows ? place.kv_head * group : place.kv_head, last = kKeyRows ? first + group : first + 1;
  for (int other = first; other < last; ++other)
    nb::each_box(w.columns, w.capacity, [&](const nb::Interval(&box)[3]) {
      const long size = nb::rows_of(box);
      if (size < 1 || size > w.capacity || !tiles) {  // of no tiles: columns for nothing
        now->wrong = tiles ? 4 : 5;
        return;
      }
      now->copied += size;
      w.pack(call.sides.column_a, call.sides.column_b, box, place.sample, other);
      if (w.adds_to_columns()) own(w, size, item);
      for (int n = 0; n < tiles; ++n) nb::visit<Count<F>>(w, w.tile[n], box);
    });
}

// What is asked for must be in the tensors.
template <class F>
void check_ahead(nb::Worker<F>& w, long long rows) {
  for (auto& ahead : w.ahead)
    for (const long long most = &ahead == w.ahead ? rows : now->columns; ahead.rows.left; ahead.rows.advance())
      if (ahead.rows.at[0] < 0 || ahead.rows.at[0] >= most) now->wrong = 7;
}

template <bool kKeyRows, class F>
void sweep(const nb::Job& job, long capacity) {
  nb::Added added = {nb::table_of(job), nullptr, nullptr, 1};
  nb::Call call(job, added);
  call.sides = nb::sides_of(job);
  nb::Worker<F> w(job, added.table);
  w.capacity = capacity;
  const long bytes = w.bytes();
  char* const memory = static_cast<char*>(aligned_alloc(64, bytes + 64));
  memset(memory, 0xff, bytes);
  w.lay_out(memory);
  for (nb::AxisRuns& columns : w.columns) columns.run[0] = columns.run[1] = {0, 1};  // of an item before
  for (int phase = 0; phase < (job.pass == nb::kGradAll ? 2 : 1); ++phase) {
    call.count(phase);
    memset(now->owners, 0, now->columns * sizeof(*now->owners));
    // From the last item on: what a thread finds must not depend on what it did before.
    for (long item = call.items - 1; item >= 0; --item) {
      const nb::Place place = nb::place_of(call, item);
      int at[3] = {place.group[0].lo, place.group[1].lo, place.group[2].lo};
      do {
        nb::begin_groups<kKeyRows>(w, call, place, at);
        nb::look_ahead<kKeyRows>(w, call, place, at);
        check_ahead(w, nb::rows_of(job, kKeyRows));
        now->items += place.heads.size();
        for (int heads = place.heads.lo; heads < place.heads.hi; ++heads)
          tiles_of<kKeyRows>(w, call, place, heads, item);
      } while (nb::advance(at, place));
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
