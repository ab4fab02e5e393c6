// roles.cpp - what lets warpgroups differ: named barriers, and registers that they hand over.
#include <algorithm>
#include <bitset>
#include "clocks.h"
#include "runtime.h"

namespace emulator {
namespace {
constexpr int kNamed = 16, kMostThreads = 1024, kRegisters = 64 << 10, kMostRegisters = 256;

struct Named {
  int threads, arrived;
  std::bitset<kMostThreads> came;
  std::vector<int> waiting;
  Clock met;
  Site site;
};
Named named[kNamed];

struct Change {  // of a warpgroup's registers
  int count;
  bool take;
  Site site;
};
std::vector<Change> changes[kMostThreads / 128];
int free_registers;
std::vector<int> takers;

void pass(Named& barrier) {
  for (int thread : barrier.waiting) {
    acquire(thread, barrier.met);
    if (&fibers[thread] != current) wake(fibers[thread]);
  }
  barrier = Named{};
}

void serve_takers() {
  for (int thread : takers) wake(fibers[thread]);
  takers.clear();
}
}  // namespace

int registers_at_start() { return std::min(kRegisters / launch->threads / 8 * 8, kMostRegisters); }

void forget_roles() {
  std::fill(named, named + kNamed, Named{});
  for (auto& list : changes) list.clear();
  takers.clear();
  free_registers = 0;  // a block has only those with which it starts
}

void check_roles_end() {
  for (int i = 0; i < kNamed; ++i)
    if (named[i].arrived)
      fail("the block ends with %d of %d arrivals at the named barrier %d, the first at %s:%d", named[i].arrived,
           named[i].threads, i, named[i].site.file, named[i].site.line);
  for (const Fiber& fiber : fibers)
    if (fiber.register_changes != static_cast<int>(changes[fiber.number / 128].size())) {
      const Change& last = changes[fiber.number / 128].back();
      fail("thread %d has not changed its registers at %s:%d, as others of its warpgroup have", fiber.number,
           last.site.file, last.site.line);
    }
}

void named_barrier(int number, int threads, bool waits, Site site) {
  const char* const what = waits ? "named_barrier_sync" : "named_barrier_arrive";
  if (number < 1 || number >= kNamed || threads <= 0 || threads % 32 || threads > launch->threads)
    fail("%s at %s:%d: barrier %d of 1 to 15 for %d threads, whole warps of %d", what, site.file, site.line, number,
         threads, launch->threads);
  Named& barrier = named[number];
  if (!barrier.arrived) {
    barrier.site = site;
    barrier.threads = threads;
  }
  if (barrier.threads != threads)
    fail("the named barrier %d expects %d threads at %s:%d, %d at %s:%d", number, barrier.threads, barrier.site.file,
         barrier.site.line, threads, site.file, site.line);
  if (barrier.came[current->number])
    fail("%s at %s:%d: thread %d comes to barrier %d twice, and only %d of %d threads have come", what, site.file,
         site.line, current->number, number, barrier.arrived, threads);
  barrier.came[current->number] = true;
  release(current->number, barrier.met);
  if (waits) barrier.waiting.push_back(current->number);
  if (++barrier.arrived == threads) return pass(barrier);
  if (waits) wait_for(what, site);
}

void change_registers(int count, bool take, Site site) {
  Fiber& fiber = self();
  const char* const what = take ? "take_registers" : "give_registers";
  auto& list = changes[fiber.number / 128];
  const size_t index = fiber.register_changes++;
  if (index == list.size()) list.push_back({count, take, site});
  if (list[index].count != count || !same(list[index].site, site))
    fail("the threads of a warpgroup change registers in different places: %s:%d and %s:%d", list[index].site.file,
         list[index].site.line, site.file, site.line);
  if (take ? count < fiber.registers : count > fiber.registers)
    fail("%s at %s:%d: thread %d has %d registers, %d are %s", what, site.file, site.line, fiber.number,
         fiber.registers, count, take ? "fewer" : "more");
  while (count - fiber.registers > free_registers) {
    takers.push_back(fiber.number);
    wait_for(what, site);
  }
  free_registers -= count - fiber.registers;
  fiber.registers = count;
  serve_takers();
}
}  // namespace emulator
