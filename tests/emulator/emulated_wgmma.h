// emulated_wgmma.h - the functions of cuda/wgmma.cuh for the emulator.
#pragma once
#include "emulator.h"

namespace nb {
__forceinline__ void wgmma_fence() { emulator::wgmma_fence(); }
__forceinline__ void wgmma_commit() { emulator::wgmma_commit(); }

template <int N>
__forceinline__ void wgmma_wait(emulator::Site site = {}) {
  emulator::wgmma_wait(N, site);
}

template <int kBlocks>
inline void pin(float (&)[kBlocks][4]) {}
template <int kSteps>
inline void pin(uint32_t (&)[kSteps][4]) {}

template <class T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<__half> = true;

template <class T, bool kMore, int kBlocks>
__forceinline__ void wgmma(float (&d)[kBlocks][4], uint64_t a, uint64_t b, emulator::Site site = {}) {
  static_assert(kBlocks == 8 || kBlocks == 16, "no such product");
  emulator::wgmma(d[0], 8 * kBlocks, kMore, !is_half<T>, nullptr, a, b, site);
}

template <class T, int kBlocks>
__forceinline__ void wgmma(float (&d)[kBlocks][4], const uint32_t (&a)[4], uint64_t b, emulator::Site site = {}) {
  static_assert(kBlocks == 8 || kBlocks == 10 || kBlocks == 12 || kBlocks == 16 || kBlocks == 24 || kBlocks == 32,
                "no such product");
  emulator::wgmma(d[0], 8 * kBlocks, true, !is_half<T>, a, 0, b, site);
}
}  // namespace nb
