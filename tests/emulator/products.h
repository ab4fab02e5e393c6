// products.h - one product of a warpgroup: what its threads say, and its sums.
#pragma once
#include "clocks.h"
#include "runtime.h"

namespace emulator {
constexpr int kThreads = 128, kRows = 64, kDepth = 16, kMostColumns = 256;

struct Sums {  // accumulators that products in flight add to
  int columns;
  float* registers[kThreads];  // of each thread, or null
  int last_product, last_group;
  alignas(32) float value[kRows][kMostColumns];
};
struct Start {  // what each thread says of a product
  int columns, group;
  bool more, bfloat16, in_registers;  // the latter: a
  uint64_t a, b;
  Site site;
  const void* place;
};
struct Product : Start {
  int arrived;
  Sums* sums;
  const uint32_t* source[kThreads];  // a in registers, and its values
  uint32_t fragment[kThreads][4];
};

inline float& value_of(Sums& sums, int thread, int i) {
  return sums.value[thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8][i / 4 * 8 + thread % 4 * 2 + i % 2];
}

void compute(Product& p);
void check_operands(const Product& p, const AsyncReader& reader, uint32_t group);  // in shared memory, when it starts
}  // namespace emulator
