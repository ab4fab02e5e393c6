// host_defines.h - CUDA's keywords for g++, in place of NVIDIA's file, which the runtime's wheel lacks.
#ifndef __HOST_DEFINES_H__
#define __HOST_DEFINES_H__
#define __constant__ static const
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
// __shared__ is not defined: kernels get all shared memory from NB_DYNAMIC_SHARED.

// Definitions that NVIDIA's other headers need from this one.
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __align__(bytes)
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#endif
