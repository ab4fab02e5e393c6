// runtime.h - shared by the parts of the emulator: the launch, threads as fibers, faults.
#pragma once
#include <vector>
#include "emulator.h"
#include "params.h"

namespace emulator {
enum Copies { kEager, kLazy, kRandom };  // cp.async writes at once, at the wait, or at either by chance

struct Buffer {  // global memory that a kernel may touch
  unsigned char* begin;
  uint64_t bytes;
  const unsigned char* present;  // a flag per element, or null if all elements belong to the tensor
  const char* name;
  int element_bytes, writable;
};

struct Launch {  // launcher.py declares this struct and Buffer, too
  void (*kernel)(nb::Params);
  const nb::Params* params;
  const Buffer* buffers;
  int buffer_count, blocks, threads, shared_bytes;
  int copies, check;
  int seconds;    // CPU time after which the launch is stopped
  unsigned seed;  // 0: threads and blocks in order
  char error[1500];
  uint64_t switches, mma, matrices, bank_ways, copied_bytes, shared_accesses;
};

struct Copy {  // one cp.async of a thread
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid;
  int group;
  const void* place;
};

struct Fiber : Thread {
  void* stack_pointer;
  const char* waits;  // what it waits for; null if it runs or is ready to run
  Site site;
  bool done;
  int groups;                // committed groups of cp.async
  std::vector<Copy> copies;  // not written yet
};

extern Launch* launch;
extern std::vector<Fiber> fibers;
extern uint32_t block_number;  // from 1 on
extern const void* operation;   // the code for which the emulator itself accesses memory
inline Fiber& self() { return *static_cast<Fiber*>(current); }
inline bool same(Site a, Site b) { return a.line == b.line && !std::strcmp(a.file, b.file); }

// Fibers.
void wait_for(const char* what, Site site);  // until another thread wakes this one
void wake(Fiber& fiber);
bool in_stacks(const void* address);
unsigned random_below(unsigned limit);
void forget_meetings();

// Faults. A place is an address of code in the kernel; launcher.py replaces it by file and line.
struct Text {
  char of[200];
};
Text place_text(const void* code);
Text address_text(const void* address);

// Memory.
void open_shared(int bytes);  // a poisoned arena between guard pages
void begin_block();
void barrier_passed();
void warp_passed(int warp);
bool is_guarded(const void* address);
bool in_shared(const void* address, int bytes);
void check_read(const void* address, int bytes, const void* place);
void check_write(const void* address, int bytes, const void* place);
void copy_issued(const Copy& copy);
void copy_landed(const Copy& copy);
void catch_signals();
void release_signals();
}  // namespace emulator
