// swizzled_tile.cuh - vectors of channels in shared memory as tensor maps copy them: boxes of up to 64 channels, in
// which chunks of 16 bytes are permuted so that products read them without bank conflicts.
#pragma once
#include "element.cuh"
#include "variant.cuh"
#include "wgmma.cuh"

namespace nb {
// kVectors vectors, a multiple of 8. A box has kAtom channels of all of them, a row of 2 kAtom bytes each; bits 4 to 6
// of an address are xored with bits 7 to 9 (of rows of 64 bytes 4 to 5 with 7 to 8, of 32 bytes 4 with 7).
template <int kVectors, int kChannels>
struct SwizzledTile {
  static constexpr int kSize = kVectors, kChunks = kChannels / 8;
  static constexpr int kAtom = kChannels % 64 == 0 ? 64 : kChannels % 32 == 0 ? 32 : 16, kRow = 2 * kAtom;
  static constexpr int kBoxes = kChannels / kAtom, kBoxBytes = kVectors * kRow, kBytes = kBoxes * kBoxBytes;
  static constexpr int kAlignment = 8 * kRow;
  static_assert(kVectors % 8 == 0 && kChannels % 16 == 0, "whole rows and steps");
  unsigned char* at;

  NB_DEVICE explicit SwizzledTile(unsigned char* begin) : at(begin) {}
  NB_DEVICE unsigned char* box(int b) const { return at + b * kBoxBytes; }

  // Chunk c, 8 channels, of a vector.
  NB_DEVICE Element* chunk(int vector, int c) const {
    constexpr int kOfBox = kAtom / 8;
    const int moved = c % kOfBox ^ (vector / (8 / kOfBox)) % kOfBox;
    return reinterpret_cast<Element*>(at + (c / kOfBox * kBoxBytes + vector * kRow + moved * 16));
  }

  // Descriptors: 16 channels from 16 k on of the vectors from `first` on, whose channels are summed; all channels of
  // the vectors 16 k to 16 k + 15, which are summed.
  NB_DEVICE uint64_t k_major(int first = 0) const { return descriptor(first * kRow, 0); }
  NB_DEVICE uint64_t mn_major() const { return descriptor(0, kBoxBytes); }
  NB_DEVICE static constexpr uint64_t k_step(int k) { return k * 16 / kAtom * kBoxBytes / 16 + k * 16 % kAtom / 8; }
  NB_DEVICE static constexpr uint64_t mn_step(int k) { return k * 16 * kRow / 16; }

 private:
  NB_DEVICE uint64_t descriptor(int offset, int group) const {
    constexpr uint64_t kSwizzle = kAtom == 64 ? 1 : kAtom == 32 ? 2 : 3;
    const uint32_t address = shared_address(at) + offset;
    return kSwizzle << 62 | static_cast<uint64_t>(8 * kRow / 16) << 32 | static_cast<uint64_t>(group / 16) << 16 |
           (address & 0x3ffff) >> 4;
  }
};

// products = vectors of this warpgroup's rows, from `rows` on, times those of the columns.
template <int kColumns, int kChannels, class RowTile, class ColumnTile>
NB_DEVICE void dot_async(float (&products)[kColumns / 8][4], uint64_t rows, uint64_t columns) {
#pragma unroll
  for (int k = 0; k < kChannels / 16; ++k) {
    if (k == 0) wgmma<Element, false>(products, rows, columns);
    else wgmma<Element, true>(products, rows + RowTile::k_step(k), columns + ColumnTile::k_step(k));
  }
}

// sums += weights times vectors.
template <int kSteps, int kBlocks, class ColumnTile>
NB_DEVICE void accumulate_async(float (&sums)[kBlocks][4], const uint32_t (&weights)[kSteps][4], uint64_t vectors) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) wgmma<Element>(sums, weights[k], vectors + ColumnTile::mn_step(k));
}

// Weights, rounded to the element type, as operands.
template <int kSteps>
NB_DEVICE void pack(uint32_t (&to)[kSteps][4], const float (&weights)[2 * kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[k][i] = pack2<Element>(weights[2 * k + i / 2][i % 2 * 2], weights[2 * k + i / 2][i % 2 * 2 + 1]);
}
}  // namespace nb
