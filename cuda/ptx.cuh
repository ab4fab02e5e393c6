// ptx.cuh - all inline PTX: fragments, asynchronous copies, ex2. tests/emulator/emulated_ptx.h emulates each function.
#pragma once
#include "base.cuh"

#ifdef NB_EMULATOR
#include "emulated_ptx.h"
#else
namespace nb {
// The 32-bit address that PTX uses for shared memory.
NB_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Loads four 8x8 matrices of 16-bit elements. Lane 8 i + k passes the address of row k (16 bytes) of matrix i; lane l
// receives the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i in fragment[i].
NB_DEVICE void ldmatrix_x4(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row)));
}

// Like ldmatrix_x4, with each matrix transposed.
NB_DEVICE void ldmatrix_x4_trans(uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row)));
}

// d [16, 8] += a [16, 16] b [16, 8], T: __half or __nv_bfloat16. With g = lane / 4, c = 2 (lane % 4), a lane has
//   a: rows g (even registers) and g + 8 (odd), columns c, c + 1 (registers 0, 1) and c + 8, c + 9 (2, 3)
//   b: rows c, c + 1 (b0) and c + 8, c + 9 (b1) of column g
//   d: row g, columns c, c + 1 (0, 1) and row g + 8 (2, 3)
template <class T>
NB_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
NB_DEVICE void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
NB_DEVICE void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d [16, 8] = a b, with the same layout: a product that starts at zero needs no registers set to zero.
template <class T>
NB_DEVICE void mma_m16n8k16_first(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
NB_DEVICE void mma_m16n8k16_first<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

template <>
NB_DEVICE void mma_m16n8k16_first<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

// Copies 8 or 16 bytes, or writes as many zero bytes if not `valid`: then the source is not read. No clobber of memory:
// volatile statements and barriers keep their order, and other memory is not loaded again after each copy.
template <int kBytes>
NB_DEVICE void cp_async(void* shared, const void* global, bool valid);

template <>
NB_DEVICE void cp_async<16>(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0));
}

template <>
NB_DEVICE void cp_async<8>(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 8 : 0));
}

NB_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's groups are in flight; other threads see the bytes after a barrier.
template <int N>
NB_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x in one instruction: error at most 2 ulp; 0 if the result would be subnormal.
NB_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x in one instruction: error at most 1 ulp; 0 if the result would be subnormal.
NB_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
}  // namespace nb
#endif

namespace nb {
// Rounds two floats to T and packs them into one register, x in the low half.
template <class T>
NB_DEVICE uint32_t pack2(float x, float y);

template <>
NB_DEVICE uint32_t pack2<__half>(float x, float y) {
  const __half2 pair = __floats2half2_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

template <>
NB_DEVICE uint32_t pack2<__nv_bfloat16>(float x, float y) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}
}  // namespace nb
