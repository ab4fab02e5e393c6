// mbarrier.cpp - barriers in shared memory that count arrivals and bytes, and work that ends by itself: boxes and
// arrivals after copies.
#include <algorithm>
#include "clocks.h"
#include "runtime.h"

namespace emulator {
namespace {
constexpr uint32_t kMagic = 0x6d626172;
constexpr int kMostBytes = (1 << 20) - 1, kMostArrivals = kMostBytes;

struct Mbarrier {
  void* at;
  int expected, pending, bytes;  // arrivals of a phase; those to come; bytes to come
  uint32_t phase;
  int owner;  // the thread that initialised it
  uint32_t init;  // its count then
  bool fenced;
  const void* place;
  std::vector<int> waiting;
  Clock arriving, completed;  // what arrivals released; what those of ended phases did
};
std::vector<Mbarrier> mbarriers;

struct Work {
  void (*end)(int);
  int number;
};
std::vector<Work> works;

struct Arrival {  // of a thread, when its copies are done
  int thread, mbarrier, number;
  uint32_t count;
  Clock clock;
};
std::vector<Arrival> arrivals;

struct Content {  // in shared memory, so that overwriting it is found
  uint32_t magic, number;
};

int find(void* at, const char* what, Site site) {
  Content content = {};
  if (in_shared(at, 8)) std::memcpy(&content, at, 8);
  if (content.magic == kMagic && content.number < mbarriers.size() && mbarriers[content.number].at == at)
    return content.number;
  for (const Mbarrier& b : mbarriers)
    if (b.at == at)
      fail("%s at %s:%d: the mbarrier %s has been overwritten", what, site.file, site.line, address_text(at).of);
  fail("%s at %s:%d: %s is no mbarrier; mbarrier_init makes one", what, site.file, site.line, address_text(at).of);
}

// The number of a barrier that this thread uses.
int use(void* at, const char* what, Site site) {
  const int number = find(at, what, site);
  const Mbarrier& b = mbarriers[number];
  if (launch->check && b.owner != current->number && !knows(current->number, b.owner, b.init))
    fail("race: %s at %s:%d: thread %d uses the mbarrier %s, which thread %d initialised at %s, and no barrier between",
         what, site.file, site.line, current->number, address_text(at).of, b.owner, place_text(b.place).of);
  return number;
}

void end_phase_if_complete(Mbarrier& b) {
  if (b.pending || b.bytes) return;
  b.pending = b.expected;
  if (launch->check) {
    b.arriving.resize(clock_width);
    b.arriving[launch->threads + (&b - mbarriers.data())] = b.phase + 1;
    b.completed = b.arriving;
  }
  ++b.phase;
  for (int thread : b.waiting) wake(fibers[thread]);
  b.waiting.clear();
}

void arrive(Mbarrier& b, int bytes, const char* what, Site site) {
  if (!b.pending)
    fail("%s at %s:%d: thread %d arrives at %s, which waits only for %d bytes: phase %u has its %d arrivals", what,
         site.file, site.line, current->number, address_text(b.at).of, b.bytes, b.phase, b.expected);
  b.bytes += bytes;
  if (std::abs(b.bytes) > kMostBytes)
    fail("%s at %s:%d: %s waits for %d bytes, of at most %d", what, site.file, site.line, address_text(b.at).of,
         b.bytes, kMostBytes);
  --b.pending;
}

void end_arrival(int number) {
  const Arrival& arrival = arrivals[number];
  Thread* const before = current;
  as_of = arrival.count;
  land_copies(fibers[arrival.thread], arrival.number);
  as_of = 0;
  Mbarrier& b = mbarriers[arrival.mbarrier];
  current = &fibers[arrival.thread];
  arrive(b, 0, "mbarrier_arrive_after_copies", self().site);
  current = before;
  if (launch->check) {
    b.arriving.resize(clock_width);
    for (int i = 0; i < clock_width; ++i) b.arriving[i] = std::max(b.arriving[i], arrival.clock[i]);
  }
  end_phase_if_complete(b);
}
}  // namespace

void end_later(void (*end)(int), int number) { works.push_back({end, number}); }
bool has_work() { return !works.empty(); }

bool end_some_work() {
  if (works.empty()) return false;
  const size_t index = launch->seed ? random_below(works.size()) : 0;
  const Work work = works[index];
  works.erase(works.begin() + index);
  work.end(work.number);
  return true;
}

void forget_mbarriers() {
  mbarriers.clear();
  works.clear();
  arrivals.clear();
}

int mbarrier_count() { return mbarriers.size(); }
uint32_t mbarrier_phase(int mbarrier) { return mbarriers[mbarrier].phase; }

void check_mbarriers_end() {
  if (!works.empty()) fail("the block ends while %zu boxes or arrivals after copies are in flight", works.size());
  for (const Mbarrier& b : mbarriers)
    if (launch->check && b.bytes)
      fail("the block ends while the mbarrier %s waits for %d bytes", address_text(b.at).of, b.bytes);
}

void mbarrier_init(void* at, int expected, Site site) {
  if (!in_shared(at, 8) || shared_address(at) % 8)
    fail("mbarrier_init at %s:%d: thread %d names %s", site.file, site.line, current->number, address_text(at).of);
  if (expected < 1 || expected > kMostArrivals)
    fail("mbarrier_init at %s:%d: %d arrivals, of 1 to %d", site.file, site.line, expected, kMostArrivals);
  for (const Mbarrier& b : mbarriers)
    if (b.at == at) fail("mbarrier_init at %s:%d: %s is an mbarrier already", site.file, site.line, address_text(at).of);
  if (mbarriers.size() == kMbarriers)
    fail("mbarrier_init at %s:%d: only %d are emulated", site.file, site.line, kMbarriers);
  const Content content = {kMagic, static_cast<uint32_t>(mbarriers.size())};
  std::memcpy(at, &content, 8);
  Mbarrier b = {};
  b.at = at;
  b.expected = b.pending = expected;
  b.owner = current->number;
  b.init = launch->check ? clock_of(b.owner) : 0;
  b.place = __builtin_return_address(0);
  mbarriers.push_back(b);
}

void mbarrier_init_fence() {
  for (Mbarrier& b : mbarriers) b.fenced |= b.owner == current->number;
}

void mbarrier_arrive(void* at, int bytes, Site site) {
  const char* const what = bytes ? "mbarrier_arrive_expect" : "mbarrier_arrive";
  Mbarrier& b = mbarriers[use(at, what, site)];
  arrive(b, bytes, what, site);
  release(current->number, b.arriving);
  end_phase_if_complete(b);
}

void mbarrier_arrive_after_copies(void* at, Site site) {
  const int mbarrier = use(at, "mbarrier_arrive_after_copies", site);
  Arrival arrival{current->number, mbarrier, ++self().copy_arrivals, 0, {}};
  if (launch->check) {
    arrival.count = clock_of(current->number);
    release(current->number, arrival.clock);
  }
  self().site = site;
  arrivals.push_back(arrival);
  if (lands_early())
    end_arrival(arrivals.size() - 1);
  else
    end_later(end_arrival, arrivals.size() - 1);
}

void mbarrier_wait(void* at, int parity, Site site) {
  const int number = use(at, "mbarrier_wait", site);
  if (parity != 0 && parity != 1)
    fail("mbarrier_wait at %s:%d: the parity %d is neither 0 nor 1", site.file, site.line, parity);
  while (static_cast<int>(mbarriers[number].phase % 2) == parity) {
    mbarriers[number].waiting.push_back(current->number);
    wait_for("mbarrier_wait", site);
  }
  acquire(current->number, mbarriers[number].completed);
}

int mbarrier_for_box(void* at, Site site) {
  const int number = use(at, "tma_load", site);
  if (!mbarriers[number].fenced)
    fail("tma_load at %s:%d: thread %d has initialised the mbarrier %s without mbarrier_init_fence", site.file,
         site.line, mbarriers[number].owner, address_text(at).of);
  return number;
}

void box_arrived(int mbarrier, int bytes) {
  Mbarrier& b = mbarriers[mbarrier];
  b.bytes -= bytes;
  if (b.bytes < -kMostBytes) fail("the mbarrier %s waits for %d bytes", address_text(b.at).of, b.bytes);
  end_phase_if_complete(b);
}
}  // namespace emulator
