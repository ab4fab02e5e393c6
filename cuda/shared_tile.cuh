// shared_tile.cuh - vectors of channels in shared memory, and how warps load them as operands of matrix products.
#pragma once
#include "element.cuh"
#include "ptx.cuh"
#include "variant.cuh"

namespace nb {
// kVectors vectors of channels, padded with zeros to a multiple of 16 channels. One more chunk of 16 bytes makes the
// number of chunks per vector odd, so the 8 vectors of a matrix are in different banks.
template <int kVectors, int kChannels>
struct SharedTile {
  static constexpr int kPadded = (kChannels + 15) / 16 * 16, kPitch = kPadded + 8, kChunks = kPadded / 8;
  static constexpr int kBytes = kVectors * kPitch * 2;
  Element* data;

  NB_DEVICE explicit SharedTile(unsigned char* at) : data(reinterpret_cast<Element*>(at)) {}
  NB_DEVICE Element* chunk(int vector, int c) const { return data + vector * kPitch + c * 8; }

  // Operand a: channels 16 k to 16 k + 15 of row block b of this warp. Here and below, all of an address that depends
  // on the lane is one term, so that the rest is in the instruction.
  NB_DEVICE void load_a(uint32_t (&a)[4], int b, int k) const {
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * Variant::kRowBlocks * 16 + lane % 16;
    ldmatrix_x4(a, data + (row * kPitch + lane / 16 * 8) + (b * 16 * kPitch + k * 16));
  }
  // Two operands b: channels 16 k to 16 k + 15 of the columns 16 n to 16 n + 15.
  NB_DEVICE void load_b(uint32_t (&b)[4], int n, int k) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(b, data + ((lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8) + (n * 16 * kPitch + k * 16));
  }
  // Two operands b, transposed: the vectors 16 k to 16 k + 15 are summed; channels 16 n to 16 n + 15 are columns.
  NB_DEVICE void load_b_trans(uint32_t (&b)[4], int k, int n) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, data + (lane % 16 * kPitch + lane / 16 * 8) + (k * 16 * kPitch + n * 16));
  }
};

// This warp's rows of a tile in registers: loaded once instead of once per visit.
template <int kChannels>
struct KeptRows {
  static constexpr int kSteps = (kChannels + 15) / 16;
  uint32_t at[Variant::kRowBlocks][kSteps][4];
  template <class Tile>
  NB_DEVICE void keep(const Tile& tile) {
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
      for (int k = 0; k < kSteps; ++k) tile.load_a(at[b][k], b, k);
  }
  NB_DEVICE void load_a(uint32_t (&a)[4], int b, int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = at[b][k][i];
  }
};
}  // namespace nb
