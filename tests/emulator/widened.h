// widened.h - eight 16-bit numbers as floats.
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace emulator {
typedef float Row __attribute__((vector_size(32)));

inline Row widened(const void* bits, bool bfloat16) {
  const __m128i packed = _mm_loadu_si128(static_cast<const __m128i*>(bits));
  if (!bfloat16) return _mm256_cvtph_ps(packed);
  return reinterpret_cast<Row>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
}
}  // namespace emulator
