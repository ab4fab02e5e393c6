// faults.cpp - checks memory accesses and catches signals; both give faults with a place in the source. Checked
// kernels are compiled for the thread sanitizer; this file implements its hooks.
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>
#include "runtime.h"

namespace emulator {
namespace {
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGVTALRM}, kCount = 5;
struct sigaction before[kCount];
stack_t stack_before;
alignas(16) unsigned char handler_stack[64 << 10], fault_stack[64 << 10];
int fault_signal;
const void *fault_address, *fault_place;

void set_timer(int seconds) {
  itimerval timer = {};
  timer.it_value.tv_sec = seconds;
  setitimer(ITIMER_VIRTUAL, &timer, nullptr);
}

void report_signal() {
  if (fault_signal == SIGVTALRM)
    fail("the launch has not ended in %d s of the CPU: thread %d is at %s", launch->seconds, current->number, place_text(fault_place).of);
  if (fault_signal == SIGFPE) fail("thread %d divides an integer by zero at %s", current->number, place_text(fault_place).of);
  if (fault_signal == SIGILL)
    fail("thread %d does what C++ does not define (overflow, alignment, array bounds, shift) at %s", current->number,
         place_text(fault_place).of);
  if (in_stacks(fault_address)) fail("thread %d has no stack left", current->number);
  fail("thread %d touches %s, a guard page, at %s", current->number,
       is_guarded(fault_address) ? address_text(fault_address).of : "memory that is not its own",
       place_text(fault_place).of);
}

// Continues in report_signal() on a separate stack, since the fiber's stack may be exhausted.
void handle(int number, siginfo_t* info, void* context) {
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  if (!current && number == SIGVTALRM) return set_timer(1);
  if (!current) return release_signals();  // not from a kernel: the signal repeats and gets its old handler
  fault_signal = number;
  fault_address = info->si_addr;
  fault_place = reinterpret_cast<void*>(registers[REG_RIP] + 1);  // as if it were a return address
  registers[REG_RIP] = reinterpret_cast<greg_t>(report_signal);
  registers[REG_RSP] = reinterpret_cast<greg_t>(fault_stack + sizeof fault_stack - 8);
}
}  // namespace

void catch_signals() {
  stack_t stack = {};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &action, &before[i]);
  set_timer(launch->seconds);
}

void release_signals() {
  set_timer(0);
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &before[i], nullptr);
  sigaltstack(&stack_before, nullptr);
}
}  // namespace emulator

#define NB_HOOK(name, bytes, check)                                                   \
  extern "C" void name(const void* address) {                                         \
    if (emulator::is_guarded(address)) emulator::check(address, bytes, __builtin_return_address(0)); \
  }
#define NB_HOOKS(bytes)                                    \
  NB_HOOK(__tsan_read##bytes, bytes, check_read)             \
  NB_HOOK(__tsan_write##bytes, bytes, check_write)           \
  NB_HOOK(__tsan_unaligned_read##bytes, bytes, check_read)   \
  NB_HOOK(__tsan_unaligned_write##bytes, bytes, check_write)
NB_HOOKS(1)
NB_HOOKS(2)
NB_HOOKS(4)
NB_HOOKS(8)
NB_HOOKS(16)
extern "C" void __tsan_read_range(const void* address, size_t bytes) {
  if (emulator::is_guarded(address)) emulator::check_read(address, bytes, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(const void* address, size_t bytes) {
  if (emulator::is_guarded(address)) emulator::check_write(address, bytes, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
