// base.cuh - types and macros that differ between NVRTC and the emulator's g++.
#pragma once
#ifdef NB_EMULATOR
#include "emulator.h"  // in tests/emulator: CUDA's keywords, thread indices and barriers on a CPU
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// NVRTC has no <stdint.h> and none of the macros of <math.h>.
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define NB_INFINITY __int_as_float(0x7f800000)
#define NB_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif
#define NB_DEVICE __device__ __forceinline__
