// hopper_primitives.cu - one kernel per primitive of sm_90a; tests/whole/test_emulator_hopper.py compares with numpy.
#include "params.h"
#include "wgmma.cuh"

using nb::Params;
namespace {
struct alignas(64) Mapped {  // as large as nb::MappedParams
  Params p;
  int number[100];
  nb::TensorMap map[24];
};

template <class T>
__device__ T* at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}
__device__ void copy_words(void* to, const void* from, int words) {
  for (int i = threadIdx.x; i < words; i += blockDim.x)
    static_cast<uint32_t*>(to)[i] = static_cast<const uint32_t*>(from)[i];
}
}  // namespace

// number: five coordinates, the box's bytes, boxes. Box i is that of map i; they lie one after another, and in out.
extern "C" __global__ void boxes(const __grid_constant__ Mapped m) {
  NB_DYNAMIC_SHARED(shared);
  const int bytes = m.number[5], count = m.number[6];
  nb::Mbarrier* const barrier = at<nb::Mbarrier>(shared, count * bytes);
  if (threadIdx.x == 0) {
    nb::mbarrier_init(barrier, 1);
    nb::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 32) {
    nb::mbarrier_arrive_expect(barrier, count * bytes);
    for (int i = 0; i < count; ++i)
      nb::tma_load(shared + i * bytes, m.map + i, barrier,
                   {m.number[0], m.number[1], m.number[2], m.number[3], m.number[4]});
  }
  nb::mbarrier_wait(barrier, 0);
  copy_words(m.p.out, shared, count * bytes / 4);
}

// number: rounds, the box's bytes. In each round the box of query at the coordinate 8 round of the second dimension
// comes to the stage round % 2; expected in two halves by two threads; lse [rounds, bytes / 4] gets its words.
extern "C" __global__ void rounds(const __grid_constant__ Mapped m) {
  NB_DYNAMIC_SHARED(shared);
  const int total = m.number[0], bytes = m.number[1];
  nb::Mbarrier* const full = at<nb::Mbarrier>(shared, 2 * bytes);
  nb::Mbarrier* const empty = full + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      nb::mbarrier_init(full + i, 2);
      nb::mbarrier_init(empty + i, 32);
    }
    nb::mbarrier_init_fence();
  }
  __syncthreads();
  for (int n = 0; n < total; ++n) {
    const int stage = n % 2;
    if (threadIdx.x < 32) {
      nb::mbarrier_wait(full + stage, n / 2 % 2);
      for (int i = threadIdx.x; i < bytes / 4; i += 32)
        static_cast<uint32_t*>(m.p.lse)[n * bytes / 4 + i] = at<uint32_t>(shared, stage * bytes)[i];
      nb::mbarrier_arrive(empty + stage);
    } else if (threadIdx.x < 34) {
      if (n >= 2) nb::mbarrier_wait(empty + stage, (n / 2 + 1) % 2);
      // The second thread's bytes may come before they are expected.
      if (threadIdx.x == 33) nb::tma_load(shared + stage * bytes, m.map, full + stage, {0, 8 * n, 0, 0, 0});
      nb::mbarrier_arrive_expect(full + stage, bytes / 2);
    }
  }
}

// 64 threads: warp 1 copies rows of query [rounds, 32, 4] by cp.async, warp 0 adds what it gets to out [32, 4] floats.
extern "C" __global__ void copies_arrive(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  nb::Mbarrier* const full = at<nb::Mbarrier>(shared, 1024);
  nb::Mbarrier* const empty = full + 2;
  const int lane = threadIdx.x % 32, total = *p.key_range;
  if (threadIdx.x < 4) nb::mbarrier_init(full + threadIdx.x, 32);
  __syncthreads();
  float4 sum = {0, 0, 0, 0};
  for (int n = 0; n < total; ++n) {
    const int stage = n % 2;
    float4* const row = at<float4>(shared, 512 * stage);
    if (threadIdx.x >= 32) {
      if (n >= 2) nb::mbarrier_wait(empty + stage, (n / 2 + 1) % 2);
      nb::cp_async<16>(row + lane, static_cast<const float4*>(p.query) + 32 * n + lane, true);
      nb::mbarrier_arrive_after_copies(full + stage);
    } else {
      nb::mbarrier_wait(full + stage, n / 2 % 2);
      const float4 x = row[31 - lane];
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
      nb::mbarrier_arrive(empty + stage);
    }
  }
  if (threadIdx.x < 32) static_cast<float4*>(p.out)[lane] = sum;
}

// key_range: bytes of query and key, images of shared memory; the number of products; then the low and high word of
// each product's descriptors of a and b, without the image's address. value and out [128, columns / 2]: registers.
template <class T, int kColumns>
__device__ void multiply_shared(const Params& p) {
  NB_DYNAMIC_SHARED(arena);
  const int a_bytes = p.key_range[0], b_bytes = p.key_range[1], count = p.key_range[2];
  copy_words(arena, p.query, a_bytes / 4);
  copy_words(arena + a_bytes, p.key, b_bytes / 4);
  nb::fence_async();
  __syncthreads();
  float d[kColumns / 8][4];
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(p.key_range) + 3;
  auto descriptor = [&](int i, int offset) {
    return static_cast<uint64_t>(words[i + 1]) << 32 | (words[i] + (nb::shared_address(arena + offset) >> 4));
  };
  nb::wgmma_fence();
  nb::wgmma<T, false>(d, descriptor(0, 0), descriptor(2, a_bytes));
  for (int i = 1; i < count; ++i) nb::wgmma<T, true>(d, descriptor(4 * i, 0), descriptor(4 * i + 2, a_bytes));
  nb::wgmma_commit();
  nb::wgmma_wait<0>();
  nb::pin(d);
  for (int n = 0; n < kColumns / 8; ++n)
    for (int e = 0; e < 4; ++e) static_cast<float*>(p.out)[kColumns / 2 * threadIdx.x + 4 * n + e] = d[n][e];
}

// As multiply_shared, but query [128, products, 4] has the registers of a, and d begins at value.
template <class T, int kColumns>
__device__ void multiply_registers(const Params& p) {
  NB_DYNAMIC_SHARED(arena);
  const int b_bytes = p.key_range[1], count = p.key_range[2];
  copy_words(arena, p.key, b_bytes / 4);
  nb::fence_async();
  __syncthreads();
  float d[kColumns / 8][4];
  uint32_t a[2][4];
  for (int n = 0; n < kColumns / 8; ++n)
    for (int e = 0; e < 4; ++e) d[n][e] = static_cast<const float*>(p.value)[kColumns / 2 * threadIdx.x + 4 * n + e];
  for (int k = 0; k < 2; ++k)
    for (int i = 0; i < 4; ++i) a[k][i] = static_cast<const uint32_t*>(p.query)[4 * (count * threadIdx.x + k) + i];
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(p.key_range) + 3;
  nb::pin(d);
  nb::pin(a);
  nb::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 2; ++k)
    nb::wgmma<T>(d, a[k], static_cast<uint64_t>(words[4 * k + 3]) << 32 |
                              (words[4 * k + 2] + (nb::shared_address(arena) >> 4)));
  nb::wgmma_commit();
  nb::wgmma_wait<0>();
  nb::pin(d);
  for (int n = 0; n < kColumns / 8; ++n)
    for (int e = 0; e < 4; ++e) static_cast<float*>(p.out)[kColumns / 2 * threadIdx.x + 4 * n + e] = d[n][e];
}
#define NB_MULTIPLY(how, columns)                                                                         \
  extern "C" __global__ void how##_half_##columns(const __grid_constant__ Params p) {                     \
    multiply_##how<__half, columns>(p);                                                                   \
  }                                                                                                       \
  extern "C" __global__ void how##_bfloat16_##columns(const __grid_constant__ Params p) {                 \
    multiply_##how<__nv_bfloat16, columns>(p);                                                            \
  }
NB_MULTIPLY(shared, 64)
NB_MULTIPLY(shared, 128)
NB_MULTIPLY(registers, 64)
NB_MULTIPLY(registers, 80)
NB_MULTIPLY(registers, 96)
NB_MULTIPLY(registers, 128)
NB_MULTIPLY(registers, 192)
NB_MULTIPLY(registers, 256)

// query [32, 4]: fragments; key [32]: where each lane's row is, of 16 bytes each; out [32, 4]: the rows.
extern "C" __global__ void stmatrix(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  const int lane = threadIdx.x;
  uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) fragment[i] = static_cast<const uint32_t*>(p.query)[4 * lane + i];
  nb::stmatrix_x4(shared + 16 * static_cast<const int*>(p.key)[lane], fragment);
  __syncwarp();
  static_cast<uint4*>(p.out)[lane] = reinterpret_cast<uint4*>(shared)[lane];
}

// Three warpgroups take turns, key_range[0] each; out [3 turns, 128]: the number of the warpgroup in each turn.
extern "C" __global__ void turns(const __grid_constant__ Params p) {
  NB_DYNAMIC_SHARED(shared);
  int* const turn = reinterpret_cast<int*>(shared);  // how many there were, of each thread
  const int group = threadIdx.x / 128, lane = threadIdx.x % 128, count = p.key_range[0];
  if (group == 0) turn[lane] = 0;
  if (group == 2) nb::named_barrier_arrive(1, 256);
  for (int n = 0; n < count; ++n) {
    nb::named_barrier_sync(1 + group, 256);
    const int number = turn[lane];
    turn[lane] = number + 1;
    static_cast<int*>(p.out)[128 * number + lane] = group;
    nb::named_barrier_arrive(1 + (group + 1) % 3, 256);
  }
  if (group == 0) nb::named_barrier_sync(1, 256);
}

// Three warpgroups; one gives registers to the others. out [384]: query [384], twice that in the first two.
extern "C" __global__ void __launch_bounds__(384, 1) registers(const __grid_constant__ Params p) {
  const float x = static_cast<const float*>(p.query)[threadIdx.x];
  if (threadIdx.x >= 256) {
    nb::give_registers<24>();
    static_cast<float*>(p.out)[threadIdx.x] = x;
  } else {
    nb::take_registers<240>();
    static_cast<float*>(p.out)[threadIdx.x] = 2 * x;
  }
}
