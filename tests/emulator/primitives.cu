// primitives.cu - one kernel per primitive of the emulator, for tests/whole/test_emulator.py to compare with numpy.
#include "params.h"
#include "ptx.cuh"

using nb::Params;

// query [32, 8] of 16 bits, a row per lane; out [2, 4, 32]: fragments, then those of the transposed matrices.
extern "C" __global__ void ldmatrix(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x;
  const uint4 row = static_cast<const uint4*>(p.query)[lane];
  reinterpret_cast<uint4*>(shared)[lane] = row;
  __syncwarp();
  uint32_t fragment[4], transposed[4];
  nb::ldmatrix_x4(fragment, shared + 16 * lane);
  nb::ldmatrix_x4_trans(transposed, shared + 16 * lane);
  for (int i = 0; i < 4; ++i) {
    static_cast<uint32_t*>(p.out)[32 * i + lane] = fragment[i];
    static_cast<uint32_t*>(p.out)[32 * (4 + i) + lane] = transposed[i];
  }
}

// Rows 128 bytes apart, with bank conflicts; or, swizzled, 144 bytes apart, without.
extern "C" __global__ void bank_conflicts(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x, swizzled = *static_cast<const int*>(p.query);
  for (int i = lane; i < 1024; i += 32) shared[i] = 0;
  __syncwarp();
  uint32_t fragment[4];
  const int row = lane % 8;
  nb::ldmatrix_x4(fragment, shared + 128 * row + (swizzled ? 16 * row : 0));
  static_cast<uint32_t*>(p.out)[lane] = fragment[0];
}

// query [32, 4], key [32, 2]: fragments of a and b; value [32, 4]: c; out [32, 4]: d.
template <class T>
__device__ void multiply(const Params& p) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = static_cast<const uint32_t*>(p.query)[4 * lane + i];
  for (int i = 0; i < 2; ++i) b[i] = static_cast<const uint32_t*>(p.key)[2 * lane + i];
  for (int i = 0; i < 4; ++i) d[i] = static_cast<const float*>(p.value)[4 * lane + i];
  nb::mma_m16n8k16<T>(d, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) static_cast<float*>(p.out)[4 * lane + i] = d[i];
}
extern "C" __global__ void multiply_half(const __grid_constant__ Params p) { multiply<__half>(p); }
extern "C" __global__ void multiply_bfloat16(const __grid_constant__ Params p) { multiply<__nv_bfloat16>(p); }

// query [64]; key = (argument, width); out [4, 64]: shuffles by index, xor, up, down.
template <class T>
__device__ void shuffle(const Params& p) {
  const T x = static_cast<const T*>(p.query)[threadIdx.x];
  const int argument = static_cast<const int*>(p.key)[0], width = static_cast<const int*>(p.key)[1];
  T* const out = static_cast<T*>(p.out) + threadIdx.x;
  out[0] = __shfl_sync(~0u, x, argument, width);
  out[64] = __shfl_xor_sync(~0u, x, argument, width);
  out[128] = __shfl_up_sync(~0u, x, argument, width);
  out[192] = __shfl_down_sync(~0u, x, argument, width);
}
extern "C" __global__ void shuffle_int(const __grid_constant__ Params p) { shuffle<int>(p); }
extern "C" __global__ void shuffle_double(const __grid_constant__ Params p) { shuffle<double>(p); }

// query [64] of 0 and 1; out [3, 64]: ballot, any, all.
extern "C" __global__ void votes(const __grid_constant__ Params p) {
  const int x = static_cast<const int*>(p.query)[threadIdx.x];
  int* const out = static_cast<int*>(p.out) + threadIdx.x;
  out[0] = static_cast<int>(__ballot_sync(~0u, x));
  out[64] = __any_sync(~0u, x);
  out[128] = __all_sync(~0u, x);
}

// query [64, 4] floats; rows from key[0] on do not exist. Group g copies half g. out [64, 4].
extern "C" __global__ void copies(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  const int thread = threadIdx.x, rows = *static_cast<const int*>(p.key);
  for (int group = 0; group < 2; ++group) {
    const int row = 32 * group + thread % 32;
    if (thread < 32)
      nb::cp_async<16>(shared + 16 * row, static_cast<const float4*>(p.query) + (row < rows ? row : 0), row < rows);
    nb::cp_async_commit();
  }
  nb::cp_async_wait<1>();
  __syncthreads();
  if (thread < 32) static_cast<float4*>(p.out)[thread] = reinterpret_cast<float4*>(shared)[thread];
  nb::cp_async_wait<0>();
  __syncthreads();
  if (thread >= 32) static_cast<float4*>(p.out)[thread] = reinterpret_cast<float4*>(shared)[thread];
}

// Reads each copy while it may be unfinished; out [2].
extern "C" __global__ void early_reads(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  for (int group = 0; group < 2; ++group) {
    *reinterpret_cast<float*>(shared + 16 * group) = 1.f;  // overwritten at once
    nb::cp_async<16>(shared + 16 * group, static_cast<const float4*>(p.query) + group, true);
    nb::cp_async_commit();
  }
  static_cast<float*>(p.out)[0] = *reinterpret_cast<float*>(shared);
  nb::cp_async_wait<1>();
  static_cast<float*>(p.out)[1] = *reinterpret_cast<float*>(shared + 16);
  nb::cp_async_wait<0>();
}

// Threads read values that others wrote before the barrier; out [64] is query [64] reversed. Twice, to reuse memory.
extern "C" __global__ void barriers(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  const int thread = threadIdx.x;
  int x = static_cast<const int*>(p.query)[thread];
  for (int i = 0; i < 3; ++i) {
    values[thread] = x;
    __syncthreads();
    x = values[63 - thread];
    __syncthreads();
  }
  static_cast<int*>(p.out)[64 * blockIdx.x + thread] = x + static_cast<int>(1000 * blockIdx.x + gridDim.x);
}

// query [n] floats: 2^x and 1 / x, out [2, n] float; the two roundings of (x, 2 x), lse [2, n].
extern "C" __global__ void arithmetic(const __grid_constant__ Params p) {
  const int i = threadIdx.x;
  const float x = static_cast<const float*>(p.query)[i];
  static_cast<float*>(p.out)[i] = nb::ex2(x);
  static_cast<float*>(p.out)[blockDim.x + i] = nb::reciprocal(x);
  static_cast<uint32_t*>(p.lse)[i] = nb::pack2<__half>(x, 2 * x);
  static_cast<uint32_t*>(p.lse)[blockDim.x + i] = nb::pack2<__nv_bfloat16>(x, 2 * x);
}

// Uninitialised values of each block: shared memory, a variable, and an output; out [blocks, 3].
extern "C" __global__ void poison(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  volatile float variable;
  float* const value = reinterpret_cast<float*>(shared);
  static_cast<float*>(p.out)[3 * blockIdx.x] = *value;
  static_cast<float*>(p.out)[3 * blockIdx.x + 1] = variable;
  *value = 1.f;
}

// out [n] = query [n], read with the stride of the view.
extern "C" __global__ void strided(const __grid_constant__ Params p) {
  const long long at = threadIdx.x * p.query_stride.channel;
  static_cast<float*>(p.out)[threadIdx.x] = static_cast<const float*>(p.query)[at];
}
