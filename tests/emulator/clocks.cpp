// clocks.cpp - vector clocks: what threads learn at barriers.
#include "clocks.h"
#include <algorithm>
#include "runtime.h"

namespace emulator {
int clock_width;
Clock clock_rows, known_to_all;

namespace {
constexpr int kLanes = 8;
typedef uint32_t Lanes __attribute__((vector_size(4 * kLanes), aligned(4)));

template <class Combine>
void combine(uint32_t* to, const uint32_t* from, Combine of) {
  for (int i = 0; i < clock_width; i += kLanes) {
    Lanes& a = *reinterpret_cast<Lanes*>(to + i);
    a = of(a, *reinterpret_cast<const Lanes*>(from + i));
  }
}
void learn(uint32_t* to, const uint32_t* from) {
  combine(to, from, [](Lanes a, Lanes b) { return a > b ? a : b; });
}
}  // namespace

void begin_clocks(int threads) {
  clock_width = (threads + kMbarriers + kLanes - 1) / kLanes * kLanes;
  clock_rows.assign(static_cast<size_t>(threads) * clock_width, 0);
  known_to_all.assign(clock_width, 0);
  for (int i = 0; i < threads; ++i) clock_of(i) = 1;
}

void release(int thread, Clock& to) {
  if (!launch->check) return;
  to.resize(clock_width);
  learn(to.data(), clock_row(thread));
  ++clock_of(thread);
}

void acquire(int thread, const Clock& from) {
  if (!launch->check || from.empty()) return;
  const uint32_t own = clock_of(thread);
  learn(clock_row(thread), from.data());
  clock_of(thread) = own;
}

void all_threads_meet() {
  if (!launch->check) return;
  for (int i = 0; i < launch->threads; ++i) {
    known_to_all[i] = clock_of(i)++;
    for (int b = launch->threads; b < launch->threads + mbarrier_count(); ++b)
      known_to_all[b] = std::max(known_to_all[b], clock_row(i)[b]);
  }
}

void forget_boxes() {
  if (!launch->check) return;
  for (int i = 0; i < launch->threads; ++i) std::fill_n(clock_row(i) + launch->threads, kMbarriers, 0u);
  std::fill_n(known_to_all.data() + launch->threads, kMbarriers, 0u);
}

void threads_meet(int first, int count) {
  if (!launch->check) return;
  static Clock met;
  met.assign(clock_width, 0);
  for (int i = first; i < first + count; ++i) learn(met.data(), clock_row(i));
  for (int i = first; i < first + count; ++i) {
    std::copy(met.begin(), met.end(), clock_row(i));
    ++clock_of(i);
  }
}

void knowledge_of_all(int first, int count, Clock& common) {
  common.assign(clock_row(first), clock_row(first) + clock_width);
  for (int i = first + 1; i < first + count; ++i)
    combine(common.data(), clock_row(i), [](Lanes a, Lanes b) { return a < b ? a : b; });
  learn(common.data(), known_to_all.data());
}
}  // namespace emulator
