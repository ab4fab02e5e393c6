// memory.cpp - guarded memory: tensors and a block's shared memory; bounds of each access.
#include <sys/mman.h>
#include <cstdio>
#include <cstdlib>
#include "clocks.h"
#include "runtime.h"

namespace emulator {
unsigned char* shared_memory;

namespace {
constexpr size_t kSpace = 1ull << 36, kPage = 4096, kGuard = 64 << 10;
constexpr size_t kPoisoned = 64 << 20;  // larger memory is a view with far strides
unsigned char *space, *unused;  // inaccessible, except memory from allocate()
std::vector<std::vector<Cell>> buffer_cells;
}  // namespace

const Buffer* buffer_at(const unsigned char* address, int bytes) {
  static int last;  // most accesses go where the last one went
  auto inside = [=](const Buffer& buffer) {
    return address >= buffer.begin && address + bytes <= buffer.begin + buffer.bytes;
  };
  if (last < launch->buffer_count && inside(launch->buffers[last])) return &launch->buffers[last];
  for (last = 0; last < launch->buffer_count; ++last)
    if (inside(launch->buffers[last])) return &launch->buffers[last];
  return nullptr;
}

namespace {
void check(const unsigned char* address, int bytes, bool write, const void* place) {
  if (in_shared(address, bytes)) {
    launch->shared_accesses++;
    const size_t first = address - shared_memory;
    for (size_t cell = first / 2; cell < (first + bytes + 1) / 2; ++cell)
      touch(shared_cells[cell], shared_memory + 2 * cell, write, place, true);
    return;
  }
  const Buffer* const buffer = buffer_at(address, bytes);
  if (!buffer)
    fail("out of bounds: thread %d %s %d bytes of %s at %s", current->number, write ? "writes" : "reads", bytes,
         address_text(address).of, place_text(place).of);
  const size_t first = address - buffer->begin;
  if (write && !buffer->writable)
    fail("thread %d writes %s, which it may only read, at %s", current->number, address_text(address).of,
         place_text(place).of);
  if (buffer->present)
    for (size_t e = first / buffer->element_bytes; e * buffer->element_bytes < first + bytes; ++e)
      if (!buffer->present[e])
        fail("thread %d reads %s at %s, which no element of the tensor is", current->number, address_text(address).of,
             place_text(place).of);
  if (!buffer->writable) return;
  auto& cells = buffer_cells[buffer - launch->buffers];
  for (size_t cell = first / 2; cell < (first + bytes + 1) / 2; ++cell)
    touch(cells[cell], buffer->begin + 2 * cell, write, place, false);
}

// The end of memory of at least this size, where a guard page begins.
unsigned char* allocate(size_t bytes) {
  if (!space) {
    void* map = mmap(nullptr, kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) std::abort();
    space = unused = static_cast<unsigned char*>(map);
  }
  const size_t pages = (bytes + 128 + kPage - 1) / kPage * kPage;
  unsigned char* const begin = unused + kGuard;
  if (begin + pages + kGuard > space + kSpace || mprotect(begin, pages, PROT_READ | PROT_WRITE)) std::abort();
  if (pages <= kPoisoned) std::memset(begin, 0xff, pages);  // NaN in every format
  return unused = begin + pages;
}
}  // namespace

bool is_guarded(const void* address) {
  return static_cast<size_t>(static_cast<const unsigned char*>(address) - space) < kSpace;
}

bool in_shared(const void* address, int bytes) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(address) - shared_memory;
  return offset >= 0 && offset + bytes <= launch->shared_bytes;
}

uint32_t shared_address(const void* address) {
  return static_cast<const unsigned char*>(address) - shared_memory + kSharedOrigin;
}

unsigned char* shared_pointer(uint32_t address) { return shared_memory + (address - kSharedOrigin); }

Text address_text(const void* address) {
  auto at = static_cast<const unsigned char*>(address);
  const char* name = "shared";
  ptrdiff_t offset = at - shared_memory;
  uint64_t bytes = launch->shared_bytes;
  auto distance = [](ptrdiff_t o, uint64_t b) { return o < 0 ? -o : o < static_cast<ptrdiff_t>(b) ? 0 : o - b + 1; };
  for (int i = 0; i < launch->buffer_count; ++i) {
    const Buffer& buffer = launch->buffers[i];
    if (distance(at - buffer.begin, buffer.bytes) >= distance(offset, bytes)) continue;
    name = buffer.name;
    offset = at - buffer.begin;
    bytes = buffer.bytes;
  }
  Text text;
  std::snprintf(text.of, sizeof text.of, "%s[%td] of %lu bytes", name, offset, bytes);
  return text;
}

void open_shared(int bytes) {
  shared_memory = allocate(bytes) - (bytes + 127) / 128 * 128;
  shared_cells.assign(launch->check ? bytes / 2 + 1 : 0, Cell{});
  buffer_cells.assign(launch->buffer_count, {});
  for (int i = 0; launch->check && i < launch->buffer_count; ++i)
    if (launch->buffers[i].writable) buffer_cells[i].resize(launch->buffers[i].bytes / 2 + 1);
}

void begin_block() {
  std::memset(shared_memory, 0xff, launch->shared_bytes);
  forget_boxes();
  all_threads_meet();
  forget_proxies();
}

void check_read(const void* address, int bytes, const void* place) {
  if (launch->check) check(static_cast<const unsigned char*>(address), bytes, false, place);
}

void check_write(const void* address, int bytes, const void* place) {
  if (launch->check) check(static_cast<const unsigned char*>(address), bytes, true, place);
}
}  // namespace emulator

// Memory for a tensor, as close to a guard page as possible for an address equal to `like` modulo 16.
extern "C" void* emulator_allocate(size_t bytes, size_t like) {
  unsigned char* const begin = emulator::allocate(bytes) - bytes;
  return begin - (reinterpret_cast<size_t>(begin) - like) % 16;
}

extern "C" void emulator_free_all() {
  using namespace emulator;
  if (space) mmap(space, unused - space, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  unused = space;
}
