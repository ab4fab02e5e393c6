// wgmma.cuh - inline PTX of sm_90a's products of a warpgroup: 64 rows, asynchronous. tests/emulator/emulated_wgmma.h
// emulates each function.
#pragma once
#include "hopper.cuh"

// Accumulators: element [n][e] of a thread is that of mma_m16n8k16's d in columns 8 n to 8 n + 7; warp w of the
// warpgroup has the rows 16 w to 16 w + 15.
//
// Operands in shared memory are 64-bit descriptors of swizzled tiles (swizzled_tile.cuh):
//   bits 0-13   address / 16; the shared memory's first 256 KiB
//   bits 16-29  MN-major: bytes / 16 from one group of columns, as wide as the swizzle, to the next; K-major: unused
//   bits 32-45  bytes / 16 from 8 rows to the next 8
//   bits 62-63  the swizzle: 1 of 128 bytes, 2 of 64, 3 of 32
#ifdef NB_EMULATOR
#include "emulated_wgmma.h"
#else
namespace nb {
// Between other uses of registers and the first product that reads or writes them.
NB_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
NB_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N of this warpgroup's groups are unfinished. Until then nothing else may touch their registers.
template <int N>
NB_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving uses of accumulators across this place.
template <int kBlocks>
NB_DEVICE void pin(float (&d)[kBlocks][4]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[n][e])::"memory");
}
template <int kSteps>
NB_DEVICE void pin(uint32_t (&a)[kSteps][4]) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k][i])::"memory");
}

// Lists of operands: the numbers of registers, and accumulators.
#define NB_NUMBERS_0 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NB_NUMBERS_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NB_NUMBERS_40 \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define NB_NUMBERS_48 \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NB_NUMBERS_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NB_NUMBERS_96 \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define NB_D(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define NB_D2(i) NB_D(i), NB_D(i + 1)
#define NB_D4(i) NB_D2(i), NB_D2(i + 2)
#define NB_D8(i) NB_D4(i), NB_D4(i + 4)
#define NB_NUMBERS_OF_64 NB_NUMBERS_0
#define NB_D_OF_64 NB_D8(0)
#define NB_NUMBERS_OF_80 NB_NUMBERS_0 NB_NUMBERS_32
#define NB_D_OF_80 NB_D8(0), NB_D2(8)
#define NB_NUMBERS_OF_96 NB_NUMBERS_0 NB_NUMBERS_32 NB_NUMBERS_40
#define NB_D_OF_96 NB_D8(0), NB_D4(8)
#define NB_NUMBERS_OF_128 NB_NUMBERS_0 NB_NUMBERS_32 NB_NUMBERS_40 NB_NUMBERS_48
#define NB_D_OF_128 NB_D8(0), NB_D8(8)
#define NB_NUMBERS_OF_192 NB_NUMBERS_0 NB_NUMBERS_32 NB_NUMBERS_40 NB_NUMBERS_48 NB_NUMBERS_64
#define NB_D_OF_192 NB_D8(0), NB_D8(8), NB_D8(16)
#define NB_NUMBERS_OF_256 NB_NUMBERS_0 NB_NUMBERS_32 NB_NUMBERS_40 NB_NUMBERS_48 NB_NUMBERS_64 NB_NUMBERS_96
#define NB_D_OF_256 NB_D8(0), NB_D8(8), NB_D8(16), NB_D8(24)

#define NB_SHARED_PRODUCT(N, TYPE, A, B, MORE)                                                                   \
  asm volatile("{ .reg .pred more; setp.ne.b32 more, " MORE                                                      \
               ", 0; wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NB_NUMBERS_OF_##N "}, " \
               A ", " B ", more, 1, 1, 0, 0; }"                                                                  \
               : NB_D_OF_##N                                                                                     \
               : "l"(a), "l"(b), "n"(kMore))
#define NB_REGISTER_PRODUCT(N, TYPE, A0, A1, A2, A3, B)                                                               \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" NB_NUMBERS_OF_##N "}, {" A0 ", " \
               A1 ", " A2 ", " A3 "}, " B ", 1, 1, 1, 1;"                                                             \
               : NB_D_OF_##N                                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define NB_SHARED_PRODUCTS(N, A, B, MORE)                                \
  if constexpr (kBlocks == N / 8) {                                      \
    if constexpr (kHalf) NB_SHARED_PRODUCT(N, "f16", A, B, MORE);        \
    else NB_SHARED_PRODUCT(N, "bf16", A, B, MORE);                       \
  }
#define NB_REGISTER_PRODUCTS(N, A0, A1, A2, A3, B)                         \
  if constexpr (kBlocks == N / 8) {                                        \
    if constexpr (kHalf) NB_REGISTER_PRODUCT(N, "f16", A0, A1, A2, A3, B); \
    else NB_REGISTER_PRODUCT(N, "bf16", A0, A1, A2, A3, B);                \
  }

template <class T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<__half> = true;

// d [64, 8 kBlocks] = a [64, 16] b [16, 8 kBlocks], plus d if kMore. Both are K-major in shared memory: b's rows there
// are the vectors of its columns.
template <class T, bool kMore, int kBlocks>
NB_DEVICE void wgmma(float (&d)[kBlocks][4], uint64_t a, uint64_t b) {
  constexpr bool kHalf = is_half<T>;
  static_assert(kBlocks == 8 || kBlocks == 16, "no such product");
  NB_SHARED_PRODUCTS(64, "%32", "%33", "%34")
  NB_SHARED_PRODUCTS(128, "%64", "%65", "%66")
}

// d [64, 8 kBlocks] += a [64, 16] b [16, 8 kBlocks]. a: in registers, laid out as mma_m16n8k16's; b: MN-major in shared
// memory, each row has the elements of all columns.
template <class T, int kBlocks>
NB_DEVICE void wgmma(float (&d)[kBlocks][4], const uint32_t (&a)[4], uint64_t b) {
  constexpr bool kHalf = is_half<T>;
  static_assert(kBlocks == 8 || kBlocks == 10 || kBlocks == 12 || kBlocks == 16 || kBlocks == 24 || kBlocks == 32,
                "no such product");
  NB_REGISTER_PRODUCTS(64, "%32", "%33", "%34", "%35", "%36")
  NB_REGISTER_PRODUCTS(80, "%40", "%41", "%42", "%43", "%44")
  NB_REGISTER_PRODUCTS(96, "%48", "%49", "%50", "%51", "%52")
  NB_REGISTER_PRODUCTS(128, "%64", "%65", "%66", "%67", "%68")
  NB_REGISTER_PRODUCTS(192, "%96", "%97", "%98", "%99", "%100")
  NB_REGISTER_PRODUCTS(256, "%128", "%129", "%130", "%131", "%132")
}
}  // namespace nb
#endif
