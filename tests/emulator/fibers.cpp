// fibers.cpp - runs a launch: a CUDA thread is a fiber, a block is a loop over ready fibers, blocks run in sequence.
#include <dlfcn.h>
#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include "clocks.h"
#include "runtime.h"

// Saves the callee-saved registers, stores the stack pointer in *from, and continues where `to` stopped.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulator {
Thread* current;
dim3 block_index, block_size, grid_size;
Launch* launch;
std::vector<Fiber> fibers;
uint32_t block_number;
const void* operation;

namespace {
constexpr size_t kPage = 4096, kStack = 256 << 10;  // the lowest page of a stack is inaccessible
unsigned char* stacks;
int stack_count, arrivals, finished;
Site barrier;  // the place of the first thread that arrived
bool failed;
void* scheduler;  // the scheduler's stack pointer
std::vector<int> ready;  // a ring buffer with each thread at most once
unsigned ready_head, ready_count;
std::mt19937 generator;

Fiber* next_ready() {
  if (!ready_count) return nullptr;
  const unsigned size = ready.size();
  if (launch->seed) std::swap(ready[ready_head], ready[(ready_head + random_below(ready_count)) % size]);
  Fiber& fiber = fibers[ready[ready_head]];
  ready_head = (ready_head + 1) % size;
  --ready_count;
  return &fiber;
}

// Switches from this fiber to the next one that is ready, or to the scheduler.
void leave() {
  Fiber& from = self();
  if (launch->seed && has_work() && !random_below(16)) end_some_work();
  Fiber* to = next_ready();
  while (!to && end_some_work()) to = next_ready();
  launch->switches++;
  if (to == &from) return;
  current = to;
  emulator_switch(&from.stack_pointer, to ? to->stack_pointer : scheduler);
}

void check_thread_end(const Fiber& fiber) {
  if (!launch->check) return;
  for (const Copy& copy : fiber.copies)
    if (copy.arrivals == fiber.copy_arrivals)  // no mbarrier waits for it, either
      fail("thread %d ends without waiting for cp.async at %s", fiber.number, place_text(copy.place).of);
  check_products_end(fiber);
}

void check_block_end() {
  check_mbarriers_end();
  if (launch->check) check_roles_end();
}

template <class Params>
void call() {
  reinterpret_cast<void (*)(Params)>(const_cast<void*>(launch->kernel))(*static_cast<const Params*>(launch->params));
}

void fiber_main() {
  if (launch->mapped) call<MappedParams>();
  else call<nb::Params>();
  Fiber& fiber = self();
  check_thread_end(fiber);
  fiber.done = true;
  if (++finished == launch->threads) check_block_end();
  leave();
}

void start_fiber(int number) {
  Fiber& fiber = fibers[number];
  fiber = Fiber{};
  fiber.index = {static_cast<unsigned>(number), 0, 0};
  fiber.number = number;
  fiber.warp = number / 32;
  fiber.lane = number % 32;
  fiber.registers = registers_at_start();
  const size_t stagger = number * 1088 % 16384;  // otherwise all threads' frames share one set of the cache
  void** top = reinterpret_cast<void**>(stacks + (number + 1) * kStack - stagger);
  *--top = nullptr;  // a call leaves the stack pointer 8 below a multiple of 16
  *--top = reinterpret_cast<void*>(fiber_main);
  fiber.stack_pointer = top - 6;
  wake(fiber);
}

void make_stacks(int count) {
  if (count <= stack_count) return;
  if (stacks) munmap(stacks, stack_count * kStack);
  void* map = mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) std::abort();
  stacks = static_cast<unsigned char*>(map);
  stack_count = count;
  for (int i = 0; i < count; ++i) mprotect(stacks + i * kStack, kPage, PROT_NONE);
}

void report(const char* format, va_list arguments) {
  const size_t room = sizeof launch->error;
  const int used = std::snprintf(launch->error, room, "block %u: ", block_number - 1);
  std::vsnprintf(launch->error + used, room - used, format, arguments);
  failed = true;
}

// Reports a deadlock: all threads wait or have ended; lists where they wait.
void report_deadlock(const char* format, ...) {
  char text[800] = "";
  size_t used = 0;
  std::vector<bool> told(fibers.size());
  for (const Fiber& fiber : fibers) {
    if (fiber.done || told[fiber.number] || used > sizeof text - 200) continue;
    int count = 0;
    for (const Fiber& other : fibers)
      if (!other.done && other.waits == fiber.waits && same(other.site, fiber.site)) {
        told[other.number] = true;
        ++count;
      }
    used += std::snprintf(text + used, sizeof text - used, "%s%d at %s in %s:%d (thread %d)", used ? ", " : "", count,
                          fiber.waits, fiber.site.file, fiber.site.line, fiber.number);
  }
  va_list arguments;
  va_start(arguments, format);
  report(format, arguments);
  va_end(arguments);
  const size_t end = std::strlen(launch->error);
  std::snprintf(launch->error + end, sizeof launch->error - end, "%d threads have ended, %s", finished, text);
}

void run_block(int block) {
  block_number = block + 1;
  block_index = {static_cast<unsigned>(block), 0, 0};
  arrivals = finished = 0;
  forget_meetings();
  forget_mbarriers();
  forget_products();
  forget_roles();
  ready_head = ready_count = 0;
  operation = nullptr;
  begin_block();
  for (int i = 0; i < launch->threads; ++i) start_fiber(i);
  current = next_ready();
  emulator_switch(&scheduler, self().stack_pointer);
  current = nullptr;
  if (!failed && finished < launch->threads) report_deadlock("deadlock: ");
}
}  // namespace

unsigned random_below(unsigned limit) { return generator() % limit; }

void wake(Fiber& fiber) {
  fiber.waits = nullptr;
  ready[(ready_head + ready_count++) % ready.size()] = fiber.number;
}

void wait_for(const char* what, Site site) {
  self().waits = what;
  self().site = site;
  leave();
}

void syncthreads(Site site) {
  if (!arrivals) barrier = site;
  if (!same(barrier, site))
    fail("a barrier is met in different places: %s:%d and %s:%d", barrier.file, barrier.line, site.file, site.line);
  if (++arrivals < launch->threads) return wait_for("__syncthreads", site);
  arrivals = 0;
  all_threads_meet();
  for (Fiber& other : fibers)
    if (&other != current) wake(other);
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(format, arguments);
  va_end(arguments);
  void* abandoned;
  current = nullptr;
  emulator_switch(&abandoned, scheduler);
  std::abort();
}

bool in_stacks(const void* address) {
  return static_cast<size_t>(static_cast<const unsigned char*>(address) - stacks) < stack_count * kStack;
}

Text place_text(const void* code) {
  Dl_info kernel, found;
  Text text = {"an unknown place"};
  if (!dladdr(launch->kernel, &kernel)) return text;
  if (!dladdr(code, &found) || found.dli_fbase != kernel.dli_fbase) code = operation;
  if (!code) return text;
  std::snprintf(text.of, sizeof text.of, "<+%tx>",
                static_cast<const char*>(code) - static_cast<const char*>(kernel.dli_fbase));
  return text;
}
}  // namespace emulator

// Returns 0, or 1 with the message in launch->error.
extern "C" int emulator_run(emulator::Launch* launch) {
  using namespace emulator;
  emulator::launch = launch;
  failed = false;
  generator.seed(launch->seed);
  block_size = {static_cast<unsigned>(launch->threads), 1, 1};
  grid_size = {static_cast<unsigned>(launch->blocks), 1, 1};
  fibers.assign(launch->threads, Fiber{});
  ready.assign(launch->threads, 0);
  make_stacks(launch->threads);
  open_shared(launch->shared_bytes);
  if (launch->check) begin_clocks(launch->threads);
  std::vector<int> order(launch->blocks);
  std::iota(order.begin(), order.end(), 0);
  if (launch->seed) std::shuffle(order.begin(), order.end(), generator);
  catch_signals();
  for (size_t i = 0; i < order.size() && !failed; ++i) run_block(order[i]);
  release_signals();
  return failed;
}

extern "C" int emulator_launch_bytes() { return sizeof(emulator::Launch); }
