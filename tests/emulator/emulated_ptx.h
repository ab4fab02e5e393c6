// emulated_ptx.h - the functions of cuda/ptx.cuh for the emulator.
#pragma once
#include "emulator.h"

namespace nb {
inline uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

inline void ldmatrix_x4(uint32_t (&fragment)[4], const void* row, emulator::Site site = {}) {
  emulator::ldmatrix(fragment, 4, false, row, site);
}

inline void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row, emulator::Site site = {}) {
  emulator::ldmatrix(fragment, 4, true, row, site);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, emulator::Site site = {}) {
  static_assert(std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value, "no such fragment");
  const uint32_t b[2] = {b0, b1};
  emulator::mma_m16n8k16(d, a, b, std::is_same<T, __nv_bfloat16>::value, site);
}

template <class T>
inline void mma_m16n8k16_first(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               emulator::Site site = {}) {
  for (float& x : d) x = 0.f;
  mma_m16n8k16<T>(d, a, b0, b1, site);
}

template <int kBytes>
inline void cp_async(void* shared, const void* global, bool valid, emulator::Site site = {}) {
  static_assert(kBytes == 8 || kBytes == 16, "no such copy");
  emulator::cp_async(shared, global, kBytes, valid, site);
}

inline void cp_async_commit() { emulator::cp_async_commit(); }

template <int N>
inline void cp_async_wait() {
  emulator::cp_async_wait(N);
}

inline float flushed(float y) { return std::isnormal(y) || std::isnan(y) || std::isinf(y) ? y : 0.f; }
inline float ex2(float x) { return flushed(std::exp2(x)); }
inline float reciprocal(float x) { return flushed(1.f / x); }
}  // namespace nb
