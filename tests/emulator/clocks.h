// clocks.h - what each thread knows of the others' accesses, as vector clocks, and a record of accesses to each cell.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {
// A thread counts its barriers and other releases; its row has the counts of the others that it knows of. Boxes are
// written by nobody's thread: those that one mbarrier counts are like one more thread.
constexpr int kMbarriers = 64, kWarpgroups = 4;
typedef std::vector<uint32_t> Clock;  // of each thread, then of each mbarrier's boxes

extern int clock_width;
extern Clock clock_rows, known_to_all;
inline uint32_t* clock_row(int thread) { return clock_rows.data() + static_cast<size_t>(thread) * clock_width; }
inline uint32_t& clock_of(int thread) { return clock_row(thread)[thread]; }
inline bool knows(int thread, int other, uint32_t count) {
  return count <= known_to_all[other] || count <= clock_row(thread)[other];
}

void begin_clocks(int threads);
void release(int thread, Clock& to);  // others learn from `to` what this thread has done so far
void acquire(int thread, const Clock& from);
void all_threads_meet();
void forget_boxes();  // mbarriers count from 0 in each block
void threads_meet(int first, int count);
void knowledge_of_all(int first, int count, Clock& common);  // what each of them knows

struct Access {
  uint32_t count;
  int thread;  // or the number of threads + that of an mbarrier
  const void* place;
};
// The last accesses to two bytes. Two readers suffice to find a race with a later write: the latest one, and one in
// another warp if there is any, otherwise the latest in another lane.
struct Cell {
  uint32_t block;  // the block that accessed it last; 0: none
  bool written, box;
  const void* copy;  // a cp.async, or a box, to this cell that is not written yet
  Access writer, reader[2];
  uint32_t group[kWarpgroups];  // the last group of products of each warpgroup that reads it; 0: none
};
extern std::vector<Cell> shared_cells;
void touch(Cell& cell, const unsigned char* address, bool write, const void* place, bool shared);

// The asynchronous proxy: boxes write shared memory, products read it. Ordinary writes are visible to it after a fence.
struct AsyncReader {  // the threads that start products, and what all of them know
  int first, count;
  Clock common;
};
void forget_proxies();
uint32_t begin_reads(int warpgroup, const void* place);  // a group of products
void end_reads(uint32_t group);                          // this warpgroup has waited for it
void product_reads(const AsyncReader& reader, uint32_t group, const unsigned char* address, int bytes,
                   const void* place);
void box_issued(unsigned char* to, int bytes, const void* place);
void box_landed(unsigned char* to, int bytes, int mbarrier, uint32_t phase, const void* place);
extern uint32_t as_of;  // the count of the writes of a copy that lands later; 0: now
}  // namespace emulator
