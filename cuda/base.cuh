// base.cuh - types and macros that differ between NVRTC, the emulator's g++ and an ordinary host compiler.
#pragma once
#if defined(NB_EMULATOR)
#include "emulator.h"  // in tests/emulator: CUDA's keywords, thread indices and barriers on a CPU
#elif defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// NVRTC has no <stdint.h> and none of the macros of <math.h>.
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define NB_INFINITY __int_as_float(0x7f800000)
// Swizzled boxes begin at multiples of 1024 bytes.
#define NB_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#else  // an ordinary host compiler, which can compile only integer arithmetic: window.cuh
#define __device__
#define __forceinline__ inline
#endif
#define NB_DEVICE __device__ __forceinline__
