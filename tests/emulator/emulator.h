// emulator.h - CUDA C++ for g++: the keywords, indices, barriers, warp operations and intrinsics that kernels use.
#ifndef NB_EMULATOR_H  // not `#pragma once`: build.py precompiles this file
#define NB_EMULATOR_H
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// 16-bit types and their arithmetic come from NVIDIA's headers, whose host part g++ can compile.
#include "crt/host_defines.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace emulator {
struct Site {  // the place of a call in a kernel's source
  const char* file;
  int line;
  constexpr Site(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

struct Thread {
  dim3 index;
  int number, warp, lane;
};
extern Thread* current;
extern dim3 block_index, block_size, grid_size;
extern unsigned char* shared_memory;

void syncthreads(Site);
void syncwarp(unsigned mask, Site);
uint64_t shuffle(unsigned mask, uint64_t value, int source_lane, Site);
unsigned ballot(unsigned mask, bool predicate, Site);
void ldmatrix(uint32_t* fragment, int matrices, bool transpose, const void* row, Site);
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bfloat16, Site);
void cp_async(void* shared, const void* global, int bytes, bool valid, Site);
void cp_async_commit();
void cp_async_wait(int groups);
uint32_t shared_address(const void* shared);
void stmatrix(void* row, const uint32_t* fragment, Site);
void mbarrier_init(void* barrier, int arrivals, Site);
void mbarrier_init_fence();
void mbarrier_arrive(void* barrier, int expected_bytes, Site);
void mbarrier_arrive_after_copies(void* barrier, Site);
void mbarrier_wait(void* barrier, int parity, Site);
void tma_load(void* shared, const void* map, void* barrier, const int* at, Site);
void fence_async();
void named_barrier(int number, int threads, bool waits, Site);
void change_registers(int count, bool take, Site);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int groups, Site);
void wgmma(float* d, int columns, bool more, bool bfloat16, const uint32_t* a, uint64_t a_descriptor, uint64_t b, Site);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <class T>
inline T shuffle_value(unsigned mask, T value, int source_lane, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source_lane, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// `shfl` of the PTX ISA, with the clamp and the segment mask that CUDA's functions pass for a width: a source past the end
// (up: before the start) of the lane's segment is replaced by the lane itself. So xor may read EARLIER segments.
inline int first_lane(int width) { return current->lane & (32 - width); }
inline int last_lane(int width) { return first_lane(width) | (width - 1); }
inline int not_after(int source, int last) { return source <= last ? source : current->lane; }
inline int not_before(int source, int first) { return source >= first ? source : current->lane; }
}  // namespace emulator

#define NB_DYNAMIC_SHARED(name) unsigned char* const name = emulator::shared_memory
#define NB_INFINITY __builtin_inff()

#define threadIdx (emulator::current->index)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size
#define warpSize 32

inline void __syncthreads(emulator::Site site = {}) { emulator::syncthreads(site); }
inline void __syncwarp(unsigned mask = ~0u, emulator::Site site = {}) { emulator::syncwarp(mask, site); }
inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = {}) {
  return emulator::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, emulator::Site site = {}) {
  return emulator::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Site site = {}) {
  return emulator::ballot(mask, predicate == 0, site) == 0;
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = {}) {
  return emulator::shuffle_value(mask, value, emulator::first_lane(width) | (source & (width - 1)), site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulator::Site site = {}) {
  const int source = emulator::current->lane ^ (bits & 31);
  return emulator::shuffle_value(mask, value, emulator::not_after(source, emulator::last_lane(width)), site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32, emulator::Site site = {}) {
  const int source = emulator::current->lane - (delta & 31);
  return emulator::shuffle_value(mask, value, emulator::not_before(source, emulator::first_lane(width)), site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32, emulator::Site site = {}) {
  const int source = emulator::current->lane + (delta & 31);
  return emulator::shuffle_value(mask, value, emulator::not_after(source, emulator::last_lane(width)), site);
}

inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
template <class T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __viaddmin_s32_relu(int a, int b, int most) {
  const int sum = a + b < most ? a + b : most;
  return sum < 0 ? 0 : sum;
}
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
#endif
