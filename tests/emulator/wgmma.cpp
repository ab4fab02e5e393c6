// wgmma.cpp - products of a warpgroup: started by 128 threads, computed at once, at the wait or at either by chance;
// until the wait their registers are NaN.
#include <algorithm>
#include <memory>
#include "products.h"

namespace emulator {
namespace {
struct Warpgroup {
  std::vector<std::unique_ptr<Product>> products;  // of the block
  std::vector<std::unique_ptr<Sums>> sums;
  std::vector<uint32_t> reads;  // the number of each group of products in races.cpp
  int computed, ended;          // products
  int waiting, groups;          // threads at a wait, and its argument
  Site wait;
};
Warpgroup warpgroups[kWarpgroups];

bool is_poison(const float* registers, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &registers[i], 4);
    if (~bits) return false;
  }
  return true;
}

void check_untouched(const Sums& sums, int thread, int first_thread, const Product& p) {
  if (!is_poison(sums.registers[thread], sums.columns / 2))
    fail("thread %d has written the accumulators of wgmma at %s:%d before wgmma_wait", first_thread + thread,
         p.site.file, p.site.line);
}

uint64_t checksum(const Registers& r) {
  uint64_t sum = 0;
  for (int i = 0; i < r.bytes / 8; ++i) {
    uint64_t word;
    std::memcpy(&word, static_cast<const unsigned char*>(r.at) + 8 * i, 8);
    sum = (sum ^ word) * 0x9e3779b97f4a7c15;
  }
  return sum;
}

Registers& registers_at(Fiber& fiber, const void* at, int bytes) {
  for (Registers& r : fiber.product_registers)
    if (r.at == at && r.bytes == bytes) return r;
  fiber.product_registers.push_back({at, bytes, true, 0});
  Registers& r = fiber.product_registers.back();
  r.sum = checksum(r);
  return r;
}

// Registers that a product begins to use: the thread has not touched them since its last fence.
void check_fenced(Fiber& fiber, const void* at, int bytes, bool reads, Site site) {
  const Registers& r = registers_at(fiber, at, bytes);
  if (!fiber.product_fence || !r.fenced)
    fail("wgmma at %s:%d: thread %d starts it without wgmma_fence since %s", site.file, site.line, fiber.number,
         r.fenced ? "its start" : "wgmma_wait gave it these registers");
  if (reads && r.sum != checksum(r))
    fail("wgmma at %s:%d: thread %d has written its registers after wgmma_fence", site.file, site.line, fiber.number);
}

// Gives the sums of ended groups back to the registers.
void hand_back(Warpgroup& w, int first_thread, int ended) {
  for (auto& sums : w.sums) {
    if (sums->last_group >= ended) continue;
    const Product& last = *w.products[sums->last_product];
    for (int t = 0; t < kThreads; ++t) {
      check_untouched(*sums, t, first_thread, last);
      for (int i = 0; i < sums->columns / 2; ++i) sums->registers[t][i] = value_of(*sums, t, i);
      registers_at(fibers[first_thread + t], sums->registers[t], sums->columns * 2).fenced = false;
    }
    sums.reset();
  }
  w.sums.erase(std::remove(w.sums.begin(), w.sums.end(), nullptr), w.sums.end());
}

void check_operands_unchanged(const Product& p, int first_thread) {
  for (int t = 0; t < kThreads && p.in_registers; ++t)
    if (std::memcmp(p.source[t], p.fragment[t], 16))
      fail("thread %d has written a register operand of wgmma at %s:%d before wgmma_wait", first_thread + t,
           p.site.file, p.site.line);
}

// All 128 threads have started this product.
void started(Warpgroup& w, int number, Product& p) {
  launch->wgmma++;
  if (static_cast<int>(w.reads.size()) <= p.group) w.reads.resize(p.group + 1);
  if (launch->check) {
    static AsyncReader reader;
    reader.first = number * kThreads;
    reader.count = kThreads;
    knowledge_of_all(reader.first, kThreads, reader.common);
    uint32_t& group = w.reads[p.group];
    if (!group) group = begin_reads(number, p.place);
    check_operands(p, reader, group);
  }
  const int count = w.products.size();
  while (w.computed < count && w.products[w.computed]->arrived == kThreads && lands_early())
    compute(*w.products[w.computed++]);
}

Product& product_of(Warpgroup& w, const Start& mine, float* registers, int lane) {
  Fiber& fiber = self();
  const size_t index = fiber.products++;
  if (index < w.products.size()) {
    Product& p = *w.products[index];
    if (p.a != mine.a || p.b != mine.b || p.columns != mine.columns || p.more != mine.more ||
        p.bfloat16 != mine.bfloat16 || p.group != mine.group || !same(p.site, mine.site))
      fail("the threads of a warpgroup start different products: %s:%d with %016lx and %016lx; thread %d %s:%d with "
           "%016lx and %016lx",
           p.site.file, p.site.line, p.a, p.b, fiber.number, mine.site.file, mine.site.line, mine.a, mine.b);
    return p;
  }
  w.products.push_back(std::make_unique<Product>());
  Product& p = *w.products.back();
  static_cast<Start&>(p) = mine;
  for (auto& sums : w.sums)
    if (sums->registers[lane] == registers) p.sums = sums.get();
  if (!p.sums) {
    w.sums.emplace_back(new Sums);  // values stay undefined
    p.sums = w.sums.back().get();
    p.sums->columns = p.columns;
    std::fill_n(p.sums->registers, kThreads, nullptr);
  }
  p.sums->last_product = index;
  p.sums->last_group = p.group;
  return p;
}
// Ends the groups before this number.
void end_groups(Warpgroup& w, int first_thread, int groups) {
  int end = w.ended;
  for (; end < static_cast<int>(w.products.size()) && w.products[end]->group < groups; ++end) {
    if (w.computed == end) compute(*w.products[w.computed++]);
    check_operands_unchanged(*w.products[end], first_thread);
  }
  hand_back(w, first_thread, groups);
  for (; w.ended < end; ++w.ended) {
    uint32_t& group = w.reads[w.products[w.ended]->group];
    if (group) end_reads(group);
    group = 0;
    w.products[w.ended].reset();
  }
}
}  // namespace

void forget_products() {
  for (Warpgroup& w : warpgroups) w = Warpgroup{};
}

void check_products_end(const Fiber& fiber) {
  if (!fiber.products) return;
  const Warpgroup& w = warpgroups[fiber.number / kThreads];
  for (auto& sums : w.sums)
    if (sums->registers[fiber.number % kThreads]) {
      const Product& last = *w.products[sums->last_product];
      fail("thread %d ends without waiting for wgmma at %s:%d", fiber.number, last.site.file, last.site.line);
    }
}

void wgmma_fence() {
  Fiber& fiber = self();
  fiber.product_fence = true;
  for (Registers& r : fiber.product_registers) {
    r.fenced = true;
    r.sum = checksum(r);
  }
}

void wgmma_commit() { self().product_groups++; }

void wgmma(float* d, int columns, bool more, bool bfloat16, const uint32_t* a, uint64_t a_descriptor, uint64_t b,
           Site site) {
  Fiber& fiber = self();
  const int number = fiber.number / kThreads, lane = fiber.number % kThreads;
  if (number >= kWarpgroups || (number + 1) * kThreads > launch->threads)
    fail("wgmma at %s:%d: thread %d is in no whole warpgroup; %d are emulated", site.file, site.line,
         fiber.number, kWarpgroups);
  Warpgroup& w = warpgroups[number];
  const Start mine{columns, fiber.product_groups, more, bfloat16, a != nullptr, a_descriptor, b, site,
                   __builtin_return_address(0)};
  Product& p = product_of(w, mine, d, lane);
  if (a) {
    p.source[lane] = a;
    std::memcpy(p.fragment[lane], a, 16);
    check_fenced(fiber, a, 16, true, site);
  }
  if (!p.sums->registers[lane]) {
    check_fenced(fiber, d, 2 * columns, more, site);
    p.sums->registers[lane] = d;
    for (int i = 0; i < columns / 2; ++i) value_of(*p.sums, lane, i) = d[i];
    std::memset(d, 0xff, columns / 2 * sizeof(float));
  } else if (p.sums->registers[lane] != d || p.sums->columns != columns) {
    fail("wgmma at %s:%d: thread %d names other accumulators than thread %d", site.file, site.line, fiber.number,
         number * kThreads);
  } else {
    check_untouched(*p.sums, lane, number * kThreads, p);
  }
  if (++p.arrived == kThreads) started(w, number, p);
}

void wgmma_wait(int groups, Site site) {
  Fiber& fiber = self();
  const int number = fiber.number / kThreads;
  if (number >= kWarpgroups || (number + 1) * kThreads > launch->threads)
    fail("wgmma_wait at %s:%d: thread %d is in no whole warpgroup", site.file, site.line, fiber.number);
  Warpgroup& w = warpgroups[number];
  if (!w.waiting) {
    w.wait = site;
    w.groups = groups;
  } else if (w.groups != groups || !same(w.wait, site)) {
    fail("the threads of a warpgroup wait in different places: %s:%d and %s:%d", w.wait.file, w.wait.line,
         site.file, site.line);
  }
  if (++w.waiting < kThreads) return wait_for("wgmma_wait", site);
  w.waiting = 0;
  const Fiber* const members = &fibers[number * kThreads];
  for (int t = 0; t < kThreads; ++t)
    if (members[t].products != fiber.products || members[t].product_groups != fiber.product_groups)
      fail("thread %d has started %d products in %d groups at %s:%d, thread %d %d in %d", members[t].number,
           members[t].products, members[t].product_groups, site.file, site.line, fiber.number, fiber.products,
           fiber.product_groups);
  const int ended = fiber.product_groups - groups;
  end_groups(w, number * kThreads, ended);
  for (int t = 0; t < kThreads; ++t)
    if (&members[t] != &fiber) wake(fibers[number * kThreads + t]);
}
}  // namespace emulator
