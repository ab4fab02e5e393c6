// mistakes.cu - one kernel per mistake that the emulator must find. Comments after code mark the lines to report.
#include "mistakes.cuh"
#include "ptx.cuh"

using nb::Params;
#define MISTAKE(name) extern "C" __global__ void name(const __grid_constant__ Params p)

// Two warps and shared memory with one int per thread.
MISTAKE(no_barrier) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = 1;                                              // other: no_barrier
  static_cast<int*>(p.out)[threadIdx.x] = values[63 - threadIdx.x];     // line: no_barrier
}

MISTAKE(no_barrier_before_reuse) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = 1;
  __syncthreads();
  const int x = values[63 - threadIdx.x];                               // other: no_barrier_before_reuse
  values[threadIdx.x] = 2;                                              // line: no_barrier_before_reuse
  static_cast<int*>(p.out)[threadIdx.x] = x;
}

MISTAKE(writes_over_readers) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x >= 32)  // the last thread to arrive, 63, continues first
    static_cast<int*>(p.out)[threadIdx.x] = values[threadIdx.x - 32];   // other: writes_over_readers
  else
    values[threadIdx.x] = 2;                                            // line: writes_over_readers
}

MISTAKE(two_writers) {
  NB_DYNAMIC_SHARED(shared);
  reinterpret_cast<int*>(shared)[threadIdx.x / 2] = threadIdx.x;        // line: two_writers
  static_cast<int*>(p.out)[threadIdx.x] = 0;
}

MISTAKE(no_syncwarp) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = 1;                                              // other: no_syncwarp
  static_cast<int*>(p.out)[threadIdx.x] = values[threadIdx.x ^ 1];      // line: no_syncwarp
}

MISTAKE(syncwarp_for_a_barrier) {
  NB_DYNAMIC_SHARED(shared);
  int* const values = reinterpret_cast<int*>(shared);
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = 1;                                              // other: syncwarp_for_a_barrier
  __syncwarp();
  static_cast<int*>(p.out)[threadIdx.x] = values[threadIdx.x ^ 1];
  if (threadIdx.x < 32) return;
  static_cast<int*>(p.out)[threadIdx.x] = values[threadIdx.x ^ 32];     // line: syncwarp_for_a_barrier
}

MISTAKE(ldmatrix_before_barrier) {
  NB_DYNAMIC_SHARED(shared);
  uint32_t fragment[4];
  reinterpret_cast<uint4*>(shared)[threadIdx.x] = uint4{0, 0, 0, 0};
  __syncthreads();
  reinterpret_cast<uint4*>(shared)[threadIdx.x] = uint4{1, 2, 3, 4};    // other: ldmatrix_before_barrier
  nb::ldmatrix_x4(fragment, shared + 16 * (threadIdx.x ^ 32));          // line: ldmatrix_before_barrier
  static_cast<int*>(p.out)[threadIdx.x] = fragment[0];
}

MISTAKE(uninitialised) {
  NB_DYNAMIC_SHARED(shared);
  if (threadIdx.x != 5) reinterpret_cast<int*>(shared)[threadIdx.x] = 1;
  __syncthreads();
  static_cast<int*>(p.out)[threadIdx.x] = reinterpret_cast<int*>(shared)[63 - threadIdx.x];  // line: uninitialised
}

MISTAKE(reads_an_output) {
  static_cast<int*>(p.out)[threadIdx.x] += 1;                           // line: reads_an_output
}

MISTAKE(reads_past_the_end) {
  static_cast<int*>(p.out)[threadIdx.x] = static_cast<const int*>(p.query)[threadIdx.x + 1];  // line: reads_past_the_end
}

MISTAKE(reads_before_the_start) {
  const long long at = static_cast<long long>(threadIdx.x) - 1;
  static_cast<int*>(p.out)[threadIdx.x] = static_cast<const int*>(p.query)[at];  // line: reads_before_the_start
}

MISTAKE(writes_past_the_end) {
  static_cast<int*>(p.out)[threadIdx.x + 1] = 1;                        // line: writes_past_the_end
}

MISTAKE(writes_an_input) {
  static_cast<int*>(const_cast<void*>(p.query))[threadIdx.x] = 1;       // line: writes_an_input
}

MISTAKE(shared_too_small) {
  NB_DYNAMIC_SHARED(shared);
  reinterpret_cast<int*>(shared)[NB_SHARED_BYTES / 4 - 63 + threadIdx.x] = 1;  // line: shared_too_small
}

MISTAKE(in_a_header) { static_cast<int*>(p.out)[threadIdx.x] = element_after(p); }  // line: in_a_header

MISTAKE(two_blocks) {
  static_cast<int*>(p.out)[threadIdx.x + 32 * blockIdx.x] = 1;          // line: two_blocks
}

MISTAKE(divergent_barrier) {
  if (threadIdx.x < 32)
    __syncthreads();                                                    // other: divergent_barrier
  else
    __syncthreads();                                                    // line: divergent_barrier
}

MISTAKE(leaves_before_a_barrier) {
  if (threadIdx.x < 32) return;
  __syncthreads();                                                      // line: leaves_before_a_barrier
}

MISTAKE(divergent_shuffle) {
  int x = threadIdx.x;
  if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(~0u, x, 1);           // line: divergent_shuffle
  static_cast<int*>(p.out)[threadIdx.x] = x;
}

MISTAKE(different_operations) {
  int x = threadIdx.x;
  if (threadIdx.x % 32 < 16)
    x += __shfl_xor_sync(~0u, x, 1);                                    // other: different_operations
  else
    __syncwarp();                                                       // line: different_operations
  static_cast<int*>(p.out)[threadIdx.x] = x;
}

MISTAKE(half_a_warp) {
  int x = threadIdx.x;
  if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(0xffff, x, 1);        // line: half_a_warp
  static_cast<int*>(p.out)[threadIdx.x] = x;
}

MISTAKE(no_wait) {
  NB_DYNAMIC_SHARED(shared);
  float4* const mine = reinterpret_cast<float4*>(shared) + threadIdx.x;
  nb::cp_async<16>(mine, p.query, true);                                  // other: no_wait
  nb::cp_async_commit();
  static_cast<float*>(p.out)[threadIdx.x] = mine->x;                    // line: no_wait
}

MISTAKE(waits_for_too_few) {
  NB_DYNAMIC_SHARED(shared);
  float4* const mine = reinterpret_cast<float4*>(shared) + threadIdx.x;
  nb::cp_async<16>(mine, p.query, true);                                  // other: waits_for_too_few
  nb::cp_async_commit();
  nb::cp_async_wait<1>();
  static_cast<float*>(p.out)[threadIdx.x] = mine->x;                    // line: waits_for_too_few
}

MISTAKE(wait_without_barrier) {
  NB_DYNAMIC_SHARED(shared);
  float4* const rows = reinterpret_cast<float4*>(shared);
  rows[threadIdx.x] = float4{1, 2, 3, 4};
  __syncthreads();
  nb::cp_async<16>(rows + threadIdx.x, p.query, true);                    // other: wait_without_barrier
  nb::cp_async_commit();
  nb::cp_async_wait<0>();
  static_cast<float*>(p.out)[threadIdx.x] = rows[threadIdx.x ^ 32].x;   // line: wait_without_barrier
}

MISTAKE(never_waits) {
  NB_DYNAMIC_SHARED(shared);
  nb::cp_async<16>(shared + 16 * threadIdx.x, p.query, true);             // line: never_waits
}

MISTAKE(copies_over_readers) {
  NB_DYNAMIC_SHARED(shared);
  float4* const rows = reinterpret_cast<float4*>(shared);
  rows[threadIdx.x] = float4{1, 2, 3, 4};
  __syncthreads();
  static_cast<float*>(p.out)[threadIdx.x] = rows[threadIdx.x ^ 32].x;   // other: copies_over_readers
  nb::cp_async<16>(rows + threadIdx.x, p.query, true);                    // line: copies_over_readers
  nb::cp_async_commit();
  nb::cp_async_wait<0>();
}

MISTAKE(copies_from_outside) {
  NB_DYNAMIC_SHARED(shared);
  const float4* const rows = static_cast<const float4*>(p.query);
  nb::cp_async<16>(shared + 16 * threadIdx.x, rows + threadIdx.x, true);  // line: copies_from_outside
  nb::cp_async_commit();
  nb::cp_async_wait<0>();
}

MISTAKE(copies_to_outside) {
  NB_DYNAMIC_SHARED(shared);
  nb::cp_async<16>(shared + NB_SHARED_BYTES, p.query, true);              // line: copies_to_outside
}

MISTAKE(copies_unaligned) {
  NB_DYNAMIC_SHARED(shared);
  nb::cp_async<16>(shared, static_cast<const int*>(p.query) + 1, true);   // line: copies_unaligned
}

MISTAKE(ldmatrix_unaligned) {
  NB_DYNAMIC_SHARED(shared);
  uint32_t fragment[4];
  nb::ldmatrix_x4(fragment, shared + 8);                                // line: ldmatrix_unaligned
}

MISTAKE(divides_by_zero) {
  static_cast<int*>(p.out)[threadIdx.x] = 7 / p.axis[0].dilation;       // line: divides_by_zero
}

MISTAKE(overflows) {
  static_cast<int*>(p.out)[threadIdx.x] = static_cast<int>(threadIdx.x) + 0x7fffffff;  // line: overflows
}

MISTAKE(unaligned_vector) {
  const char* const at = static_cast<const char*>(p.query) + 4;
  static_cast<int*>(p.out)[threadIdx.x] = reinterpret_cast<const int4*>(at)->x;  // line: unaligned_vector
}

MISTAKE(past_a_local_array) {
  int values[4] = {1, 2, 3, 4};
  static_cast<int*>(p.out)[threadIdx.x] = values[3 + threadIdx.x];          // line: past_a_local_array
}

MISTAKE(never_ends) {
  volatile int x = 1;
  while (x) x = 1;                                                      // line: never_ends
}

MISTAKE(never_ends_its_calls) { static_cast<int*>(p.out)[threadIdx.x] = deeper(p, 1); }
