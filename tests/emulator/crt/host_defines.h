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
// __shared__ has no meaning: kernels take all shared memory from NB_DYNAMIC_SHARED.

// What NVIDIA's other headers expect of this one.
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __align__(bytes)
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__
#endif
