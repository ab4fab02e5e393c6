// races.cpp - finds accesses to the same bytes that nothing orders, and asynchronous ones of bytes without a fence.
#include <algorithm>
#include <cstdio>
#include "clocks.h"
#include "runtime.h"

namespace emulator {
std::vector<Cell> shared_cells;
uint32_t as_of;

namespace {
struct Reads {  // of a group of products
  int warpgroup;
  const void* place;
  uint32_t ended[128];  // counts of the warpgroup's threads at their wait; 0: not yet
};
std::vector<Reads> reads;
std::vector<Clock> fences;     // of each thread: its counts at each fence_async
std::vector<Clock> at_fence;   // of each thread: what it knew at its last one
uint32_t over_group;           // the last that ended_for found
int over_thread;

Access access_here(const void* place) { return {as_of ? as_of : clock_of(current->number), current->number, place}; }

// Whether nothing orders an access of another thread before this thread's.
bool unordered(const Access& access) {
  return access.thread != current->number && !knows(current->number, access.thread, access.count);
}

void remember_reader(Cell& cell, const Access& reader) {
  Access& latest = cell.reader[0];
  Access& other = cell.reader[1];
  auto matters = [](const Access& access) { return access.count > known_to_all[access.thread]; };
  const bool other_matters = matters(other) && other.thread / 32 != reader.thread / 32;
  if (matters(latest) && latest.thread != reader.thread)
    if (latest.thread / 32 != reader.thread / 32 || !other_matters) other = latest;
  latest = reader;
}

Text name(const Access& access) {
  Text text = {"a box"};
  if (access.thread < launch->threads) std::snprintf(text.of, sizeof text.of, "thread %d", access.thread);
  return text;
}

[[noreturn]] void report_race(const char* what, const unsigned char* address, const void* place, const char* other_what,
                              const Access& other) {
  fail("race: thread %d %s %s at %s, %s %s it at %s, and no barrier between", current->number, what,
       address_text(address).of, place_text(place).of, name(other).of, other_what, place_text(other.place).of);
}

// Whether a thread knows that a group of products has read: the wait of one thread is that of its warp.
bool ended_for(int thread, uint32_t group) {
  if (group == over_group && thread == over_thread) return true;
  const Reads& r = reads[group];
  for (int warp = 0; warp < 4; ++warp) {
    bool known = false;
    for (int i = 32 * warp; i < 32 * warp + 32 && !known; ++i)
      known = r.ended[i] && (128 * r.warpgroup + i == thread || knows(thread, 128 * r.warpgroup + i, r.ended[i]));
    if (!known) return false;
  }
  over_group = group;
  over_thread = thread;
  return true;
}

void check_no_products(Cell& cell, const char* what, const unsigned char* address, const void* place) {
  for (uint32_t& group : cell.group) {
    if (group && !ended_for(current->number, group))
      fail("race: thread %d %s %s at %s, wgmma at %s may still read it", current->number, what,
           address_text(address).of, place_text(place).of, place_text(reads[group].place).of);
    group = 0;
  }
}

void check_nothing_in_flight(const Cell& cell, const char* what, const unsigned char* address, const void* place) {
  if (cell.copy)
    fail("thread %d %s %s at %s while %s of %s is in flight", current->number, what, address_text(address).of,
         place_text(place).of, cell.box ? "a box" : "cp.async", place_text(cell.copy).of);
}

// A fence of the writer that the readers know of, or a fence of each reader after it knew of the write.
bool fenced(const Access& writer, const AsyncReader& reader) {
  if (writer.thread >= launch->threads) return true;
  const Clock& own = fences[writer.thread];
  const auto fence = std::upper_bound(own.begin(), own.end(), writer.count);
  if (fence != own.end() && *fence <= reader.common[writer.thread]) return true;
  for (int i = reader.first; i < reader.first + reader.count; ++i)
    if (at_fence[i].empty() || at_fence[i][writer.thread] < writer.count) return false;
  return true;
}

bool same_access(const Access& a, const Access& b) { return a.thread == b.thread && a.count == b.count; }

void begin_cell(Cell& cell) {
  if (cell.block == block_number) return;
  cell = Cell{};
  cell.block = block_number;
}
}  // namespace

// Checks one access to a cell of writable memory.
void touch(Cell& cell, const unsigned char* address, bool write, const void* place, bool shared) {
  if (cell.block != block_number) {
    if (cell.block && !shared)
      fail("blocks %u and %u both touch %s, at %s and at %s", cell.block - 1, block_number - 1, address_text(address).of,
           place_text(cell.writer.place).of, place_text(place).of);
    begin_cell(cell);
  }
  check_nothing_in_flight(cell, "touches", address, place);
  if (!write && !cell.written)
    fail("thread %d reads %s at %s, which nothing has written", current->number, address_text(address).of,
         place_text(place).of);
  if (cell.written && unordered(cell.writer))
    report_race(write ? "writes" : "reads", address, place, "wrote", cell.writer);
  const Access access = access_here(place);
  if (!write) return remember_reader(cell, access);
  for (const Access& reader : cell.reader)
    if (unordered(reader)) report_race("writes", address, place, "read", reader);
  if (cell.group[0] | cell.group[1] | cell.group[2] | cell.group[3]) check_no_products(cell, "writes", address, place);
  cell.written = true;
  cell.writer = access;
}

void copy_issued(const Copy& copy) {
  if (!launch->check) return;
  if (copy.valid) check_read(copy.from, copy.bytes, copy.place);
  check_write(copy.to, copy.bytes, copy.place);
  for (int i = 0; i < copy.bytes / 2; ++i) {
    Cell& cell = shared_cells[(copy.to - shared_memory) / 2 + i];
    cell.copy = copy.place;
    cell.box = false;
  }
}

void copy_landed(const Copy& copy) {
  if (!launch->check) return;
  for (int i = 0; i < copy.bytes / 2; ++i) shared_cells[(copy.to - shared_memory) / 2 + i].copy = nullptr;
  check_write(copy.to, copy.bytes, copy.place);
}

void forget_proxies() {
  if (!launch->check) return;
  reads.assign(1, Reads{});
  fences.assign(launch->threads, {});
  at_fence.assign(launch->threads, {});
  over_group = 0;
}

void fence_async() {
  if (!launch->check) return;
  const int thread = current->number;
  knowledge_of_all(thread, 1, at_fence[thread]);
  fences[thread].push_back(++clock_of(thread));
}

uint32_t begin_reads(int warpgroup, const void* place) {
  if (!launch->check) return 0;
  reads.push_back({warpgroup, place, {}});
  return reads.size() - 1;
}

void end_reads(uint32_t group) {
  if (!launch->check) return;
  for (int i = 0; i < 128; ++i) reads[group].ended[i] = clock_of(128 * reads[group].warpgroup + i);
}

void product_reads(const AsyncReader& reader, uint32_t group, const unsigned char* address, int bytes,
                   const void* place) {
  Access good = {};
  for (const unsigned char* at = address; at < address + bytes; at += 2) {
    Cell& cell = shared_cells[(at - shared_memory) / 2];
    begin_cell(cell);
    check_nothing_in_flight(cell, "starts wgmma, which reads", at, place);
    if (!cell.written)
      fail("wgmma at %s reads %s, which nothing has written", place_text(place).of, address_text(at).of);
    cell.group[reads[group].warpgroup] = group;
    if (same_access(cell.writer, good)) continue;
    if (cell.writer.count > reader.common[cell.writer.thread])
      fail("race: wgmma at %s reads %s, %s wrote it at %s, and no barrier between", place_text(place).of,
           address_text(at).of, name(cell.writer).of, place_text(cell.writer.place).of);
    if (!fenced(cell.writer, reader))
      fail("wgmma at %s reads %s, which thread %d wrote at %s without fence_async", place_text(place).of,
           address_text(at).of, cell.writer.thread, place_text(cell.writer.place).of);
    good = cell.writer;
  }
}

void box_issued(unsigned char* to, int bytes, const void* place) {
  if (!launch->check) return;
  AsyncReader issuer{current->number, 1, {}};
  knowledge_of_all(current->number, 1, issuer.common);
  for (unsigned char* at = to; at < to + bytes; at += 2) {
    Cell& cell = shared_cells[(at - shared_memory) / 2];
    begin_cell(cell);
    check_nothing_in_flight(cell, "copies a box to", at, place);
    if (cell.written && unordered(cell.writer)) report_race("copies a box to", at, place, "wrote", cell.writer);
    if (cell.written && !fenced(cell.writer, issuer))
      fail("thread %d copies a box to %s at %s, which thread %d wrote at %s without fence_async", current->number,
           address_text(at).of, place_text(place).of, cell.writer.thread, place_text(cell.writer.place).of);
    for (Access& reader : cell.reader) {
      if (unordered(reader)) report_race("copies a box to", at, place, "read", reader);
      reader = {};
    }
    check_no_products(cell, "copies a box to", at, place);
    cell.copy = place;
    cell.box = true;
  }
}

void box_landed(unsigned char* to, int bytes, int mbarrier, uint32_t phase, const void* place) {
  if (!launch->check) return;
  for (int i = 0; i < bytes / 2; ++i) {
    Cell& cell = shared_cells[(to - shared_memory) / 2 + i];
    cell.copy = nullptr;
    cell.written = true;
    cell.writer = {phase + 1, launch->threads + mbarrier, place};
  }
}
}  // namespace emulator
