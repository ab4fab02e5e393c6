// products.cpp - decodes the descriptors of a product's operands, and computes it.
#include "products.h"
#include "widened.h"

namespace emulator {
namespace {
struct Descriptor {
  uint32_t start, next_columns, next_rows;  // bytes
  int swizzle;
};

Descriptor decoded(uint64_t bits, const Product& p) {
  static constexpr int kSwizzles[] = {0, 128, 64, 32};
  auto bytes = [=](int from) { return static_cast<uint32_t>(bits >> from & 0x3fff) << 4; };
  const Descriptor d{bytes(0), bytes(16), bytes(32), kSwizzles[bits >> 62]};
  if (!d.swizzle || bits & 0x3fffc000c000c000)
    fail("wgmma at %s:%d: the descriptor %016lx has no swizzle, or unknown bits", p.site.file, p.site.line, bits);
  if (d.start % (8 * d.swizzle) >= static_cast<uint32_t>(d.swizzle))  // chunks would be permuted in another way
    fail("wgmma at %s:%d: the descriptor %016lx begins at %u, not in the first row of %d bytes", p.site.file,
         p.site.line, bits, d.start, 8 * d.swizzle);
  return d;
}

// Calls visit(pointer to 8 elements, vector, chunk): vectors along the descriptor's rows, chunks of 8 of its elements.
template <class Visit>
void each_chunk(const Product& p, uint64_t bits, int rows, int chunks, Visit visit) {
  const Descriptor d = decoded(bits, p);
  const int per_group = d.swizzle / 16;
  for (int row = 0; row < rows; ++row)
    for (int c = 0; c < chunks; ++c) {
      uint32_t address = d.start + row / 8 * d.next_rows + row % 8 * d.swizzle;
      address += chunks == 2 ? c * 16 : c / per_group * d.next_columns + c % per_group * 16;
      const unsigned char* const at = shared_pointer(address ^ swizzle_bits(address, d.swizzle));
      if (!in_shared(at, 16))
        fail("wgmma at %s:%d: row %d, chunk %d of the descriptor %016lx is %s", p.site.file, p.site.line, row, c, bits,
             address_text(at).of);
      visit(at, row, c);
    }
}

// b [16, columns] is K-major, a row per column, if a is in shared memory, and otherwise MN-major, a row per summand.
template <class Visit>
void each_operand(const Product& p, Visit visit) {
  auto visit_a = [&](const unsigned char* at, int row, int c) { visit(at, true, row, c); };
  auto visit_b = [&](const unsigned char* at, int row, int c) { visit(at, false, row, c); };
  if (p.in_registers) return each_chunk(p, p.b, kDepth, p.columns / 8, visit_b);
  each_chunk(p, p.a, kRows, kDepth / 8, visit_a);
  each_chunk(p, p.b, p.columns, kDepth / 8, visit_b);
}
}  // namespace

void compute(Product& p) {
  alignas(32) float a[kRows][kDepth], b[kDepth][kMostColumns];
  each_operand(p, [&](const unsigned char* at, bool first, int row, int c) {
    const Row values = widened(at, p.bfloat16);
    if (first) std::memcpy(&a[row][8 * c], &values, 32);
    else if (p.in_registers) std::memcpy(&b[row][8 * c], &values, 32);
    else
      for (int k = 0; k < 8; ++k) b[8 * c + k][row] = values[k];
  });
  for (int t = 0; t < kThreads && p.in_registers; ++t) {
    const Row values = widened(p.fragment[t], p.bfloat16);
    for (int i = 0; i < 8; ++i) a[t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8][t % 4 * 2 + i % 2 + i / 4 * 8] = values[i];
  }
  for (int row = 0; row < kRows; ++row)
    for (int n = 0; n < p.columns; n += 8) {
      Row sum = {};
      if (p.more) std::memcpy(&sum, &p.sums->value[row][n], 32);
      for (int k = 0; k < kDepth; ++k) {
        Row factors;
        std::memcpy(&factors, &b[k][n], 32);
        sum += a[row][k] * factors;
      }
      std::memcpy(&p.sums->value[row][n], &sum, 32);
    }
}

void check_operands(const Product& p, const AsyncReader& reader, uint32_t group) {
  each_operand(p, [&](const unsigned char* at, bool, int, int) { product_reads(reader, group, at, 16, p.place); });
}
}  // namespace emulator
