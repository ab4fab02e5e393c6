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

struct alignas(64) MappedParams {  // stands for nb::MappedParams of cuda/boxes.cuh, which is passed in the same way
  unsigned char bytes[4032];
};

struct Launch {  // launcher.py declares this struct and Buffer, too
  const void* kernel;  // its argument is nb::Params or, if `mapped`, MappedParams
  const void* params;
  const Buffer* buffers;
  int buffer_count, blocks, threads, shared_bytes;
  int copies, check, mapped;
  int seconds;    // CPU time after which the launch is stopped
  unsigned seed;  // 0: threads and blocks in order
  char error[1500];
  uint64_t switches, mma, matrices, bank_ways, copied_bytes, shared_accesses, wgmma, boxes, box_bytes;
};

struct Copy {  // one cp.async of a thread
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid;
  int group;
  const void* place;
  int arrivals;  // mbarrier_arrive_after_copies of this thread before it
};

struct Registers {  // that products have used
  const void* at;
  int bytes;
  bool fenced;    // since a wait gave them back
  uint64_t sum;  // a checksum at the last fence
};

struct Fiber : Thread {
  void* stack_pointer;
  const char* waits;  // what it waits for; null if it runs or is ready to run
  Site site;
  bool done;
  int groups;                // committed groups of cp.async
  std::vector<Copy> copies;  // not written yet
  int copy_arrivals;         // mbarrier_arrive_after_copies so far
  int products, product_groups;  // of wgmma: issued; committed
  std::vector<Registers> product_registers;
  bool product_fence;        // since the start
  int registers, register_changes;
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
bool lands_early();  // by the launch's mode, or by chance

// Faults. A place is an address of code in the kernel; launcher.py replaces it by file and line.
struct Text {
  char of[200];
};
Text place_text(const void* code);
Text address_text(const void* address);

// Memory.
void open_shared(int bytes);  // a poisoned arena between guard pages
void begin_block();
bool is_guarded(const void* address);
bool in_shared(const void* address, int bytes);
const Buffer* buffer_at(const unsigned char* address, int bytes);
void check_read(const void* address, int bytes, const void* place);
void check_write(const void* address, int bytes, const void* place);
void catch_signals();
void release_signals();
constexpr uint32_t kSharedOrigin = 1024;  // the 32-bit address of shared memory's first byte
unsigned char* shared_pointer(uint32_t address);
// What a swizzle of 128, 64 or 32 bytes changes in an address: its chunk of 16 bytes by its row of 128.
inline uint32_t swizzle_bits(uint32_t address, int swizzle) { return (address >> 7 & (swizzle / 16 - 1)) << 4; }

// Copies: cp.async.
void copy_issued(const Copy& copy);
void copy_landed(const Copy& copy);
void land_copies(Fiber& fiber, int arrivals);  // those before so many mbarrier_arrive_after_copies

// Work that ends by itself: boxes, and arrivals after copies.
void end_later(void (*end)(int number), int number);
bool has_work();
bool end_some_work();  // false: there is none
void forget_mbarriers();
void check_mbarriers_end();
int mbarrier_count();
int mbarrier_for_box(void* barrier, Site site);  // its number
uint32_t mbarrier_phase(int mbarrier);
void box_arrived(int mbarrier, int bytes);

// Products, named barriers, registers.
void forget_products();
void check_products_end(const Fiber& fiber);
void forget_roles();
void check_roles_end();
int registers_at_start();
}  // namespace emulator
