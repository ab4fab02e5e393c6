// tensor_maps.cpp - boxes that tensor maps describe: copied at once, when all threads wait, or at either by chance.
#include <algorithm>
#include "clocks.h"
#include "runtime.h"

namespace emulator {
namespace {
constexpr int kRank = 5;
constexpr uint64_t kMagic = 0x70616d726f736e74;  // launcher.py writes maps of this form in place of the driver's

struct Map {
  uint64_t magic;
  const unsigned char* begin;
  int64_t stride[kRank - 1];  // bytes from one position to the next, of the axes 1 to 4
  uint32_t size[kRank], box[kRank], step[kRank];
  int swizzle, element_bytes;

  int count(int axis) const { return (box[axis] + step[axis] - 1) / step[axis]; }
  int bytes() const {
    int total = element_bytes;
    for (int axis = 0; axis < kRank; ++axis) total *= count(axis);
    return total;
  }
};
static_assert(sizeof(Map) <= 128, "as long as the driver's");

struct Box {
  Map map;
  unsigned char* to;
  int mbarrier, at[kRank], thread;
  uint32_t phase;
  const void* place;
};
std::vector<Box> boxes;  // those not copied yet; empty places are reused when there are none

// Elements of the tensor, in one run along the innermost axis.
void check_inside(const Box& box, const unsigned char* from, int bytes) {
  const Buffer* const buffer = buffer_at(from, bytes);
  if (!buffer)
    fail("out of bounds: the box of thread %d at %s reads %d bytes of %s", box.thread, place_text(box.place).of, bytes,
         address_text(from).of);
  if (buffer->present && std::memchr(buffer->present + (from - buffer->begin) / buffer->element_bytes, 0,
                                     bytes / buffer->element_bytes))
    fail("the box of thread %d at %s reads %d bytes of %s, which no element of the tensor is", box.thread,
         place_text(box.place).of, bytes, address_text(from).of);
  check_read(from, bytes, box.place);
}

// Copies the inner run of elements whose outer coordinates are `from`'s, or zeros.
void copy_run(const Box& box, const unsigned char* from, unsigned char* to) {
  const Map& map = box.map;
  const int length = map.box[0], first = std::clamp(-box.at[0], 0, length),
            end = std::clamp<int64_t>(static_cast<int64_t>(map.size[0]) - box.at[0], first, length);
  unsigned char row[256] = {};
  if (from && end > first) {
    const unsigned char* const begin = from + static_cast<int64_t>(box.at[0] + first) * map.element_bytes;
    check_inside(box, begin, (end - first) * map.element_bytes);
    std::memcpy(row + first * map.element_bytes, begin, (end - first) * map.element_bytes);
  }
  for (int chunk = 0; chunk < length * map.element_bytes; chunk += 16) {
    const uint32_t address = shared_address(to + chunk);
    std::memcpy(shared_pointer(address ^ swizzle_bits(address, map.swizzle)), row + chunk, 16);
  }
}

void land(int number) {
  const Box box = boxes[number];
  const Map& map = box.map;
  Thread* const before = current;
  current = &fibers[box.thread];
  operation = box.place;
  unsigned char* to = box.to;
  int i[kRank] = {};
  for (i[4] = 0; i[4] < map.count(4); ++i[4])
    for (i[3] = 0; i[3] < map.count(3); ++i[3])
      for (i[2] = 0; i[2] < map.count(2); ++i[2])
        for (i[1] = 0; i[1] < map.count(1); ++i[1]) {
          const unsigned char* from = map.begin;
          for (int axis = 1; axis < kRank && from; ++axis) {
            const int64_t at = box.at[axis] + static_cast<int64_t>(i[axis]) * map.step[axis];
            from = at >= 0 && at < map.size[axis] ? from + at * map.stride[axis - 1] : nullptr;
          }
          copy_run(box, from, to);
          to += map.box[0] * map.element_bytes;
        }
  current = before;
  box_landed(box.to, map.bytes(), box.mbarrier, box.phase, box.place);
  box_arrived(box.mbarrier, map.bytes());
}
}  // namespace

void tma_load(void* shared, const void* tensor_map, void* barrier, const int* at, Site site) {
  Box box = {};
  if (!tensor_map || reinterpret_cast<uintptr_t>(tensor_map) % 64)
    fail("tma_load at %s:%d: the tensor map's address is no multiple of 64", site.file, site.line);
  std::memcpy(&box.map, tensor_map, sizeof(Map));
  if (box.map.magic != kMagic)
    fail("tma_load at %s:%d: thread %d names no tensor map", site.file, site.line, current->number);
  box.to = static_cast<unsigned char*>(shared);
  box.thread = current->number;
  box.place = __builtin_return_address(0);
  std::copy(at, at + kRank, box.at);
  const int bytes = box.map.bytes(), alignment = 8 * box.map.swizzle;
  if (!in_shared(shared, bytes))
    fail("tma_load at %s:%d: thread %d copies %d bytes to %s", site.file, site.line, current->number, bytes,
         address_text(shared).of);
  if (shared_address(shared) % alignment)
    fail("tma_load at %s:%d: thread %d copies to %s, no multiple of %d", site.file, site.line, current->number,
         address_text(shared).of, alignment);
  box.mbarrier = mbarrier_for_box(barrier, site);
  box.phase = mbarrier_phase(box.mbarrier);
  box_issued(box.to, bytes, box.place);
  std::memset(shared, 0xff, bytes);  // NaN for those that read too early
  launch->boxes++;
  launch->box_bytes += bytes;
  if (!has_work()) boxes.clear();
  boxes.push_back(box);
  if (lands_early())
    land(boxes.size() - 1);
  else
    end_later(land, boxes.size() - 1);
}
}  // namespace emulator
