// copies.cpp - cp.async: copies are written at once, at the wait for their group, or at either by chance.
#include <algorithm>
#include "runtime.h"

namespace emulator {
namespace {
void land(const Copy& copy) {
  operation = copy.place;
  copy_landed(copy);
  if (copy.valid)
    std::memcpy(copy.to, copy.from, copy.bytes);
  else
    std::memset(copy.to, 0, copy.bytes);
}

}  // namespace

bool lands_early() {
  return launch->copies == kEager || (launch->copies == kRandom && random_below(2));
}

void cp_async(void* shared, const void* global, int bytes, bool valid, Site site) {
  Fiber& fiber = self();
  const Copy copy{static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid,
                  fiber.groups, __builtin_return_address(0), fiber.copy_arrivals};
  if (!in_shared(shared, bytes) || reinterpret_cast<uintptr_t>(shared) % bytes)
    fail("cp.async at %s:%d: thread %d copies to %s", site.file, site.line, fiber.number, address_text(shared).of);
  if (reinterpret_cast<uintptr_t>(global) % bytes)
    fail("cp.async at %s:%d: thread %d copies from %s, no multiple of %d", site.file, site.line, fiber.number,
         address_text(global).of, bytes);
  launch->copied_bytes += valid ? bytes : 0;
  copy_issued(copy);
  if (lands_early()) return land(copy);
  std::memset(shared, 0xff, bytes);  // a thread that reads too early reads NaN
  fiber.copies.push_back(copy);
}

void cp_async_commit() { self().groups++; }

void cp_async_wait(int groups) {
  Fiber& fiber = self();
  auto stays = [&](const Copy& copy) { return copy.group >= fiber.groups - groups && !lands_early(); };
  const auto end = std::stable_partition(fiber.copies.begin(), fiber.copies.end(), stays);
  std::for_each(end, fiber.copies.end(), land);
  fiber.copies.erase(end, fiber.copies.end());
}

void land_copies(Fiber& fiber, int arrivals) {
  auto stays = [&](const Copy& copy) { return copy.arrivals >= arrivals; };
  const auto end = std::stable_partition(fiber.copies.begin(), fiber.copies.end(), stays);
  Thread* const before = current;
  current = &fiber;
  std::for_each(end, fiber.copies.end(), land);
  current = before;
  fiber.copies.erase(end, fiber.copies.end());
}
}  // namespace emulator
