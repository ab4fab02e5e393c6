// hopper_mistakes.cuh - what hopper_mistakes.cu and wgmma_mistakes.cu share: a box, an operand and a barrier.
#pragma once
#include "params.h"
#include "wgmma.cuh"

#define MISTAKE(name) extern "C" __global__ void name(const __grid_constant__ Mapped m)

struct alignas(64) Mapped {  // as large as nb::MappedParams
  nb::Params p;
  int number[100];
  nb::TensorMap map[24];
};
constexpr int kBytes = 4096;  // of a box, [32, 64] of 16 bits

// 64 vectors of 64 channels, in which a box is the first half; then barriers.
struct Shared {
  unsigned char* memory;
  int* word;
  nb::Mbarrier* barrier;
  float d[8][4];
  uint32_t a[4];

  NB_DEVICE Shared() : d{}, a{} {
    NB_DYNAMIC_SHARED(shared);
    memory = shared;
    word = reinterpret_cast<int*>(shared);
    barrier = reinterpret_cast<nb::Mbarrier*>(shared + 2 * kBytes);
  }
  NB_DEVICE void begin(int arrivals, int count = 1) const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < count; ++i) nb::mbarrier_init(barrier + i, arrivals);
      nb::mbarrier_init_fence();
    }
    __syncthreads();
  }
  // Box i, for the barrier i.
  NB_DEVICE void load(const Mapped& m, int i, int bytes) const {
    nb::mbarrier_arrive_expect(barrier + i, bytes);
    nb::tma_load(memory + i * kBytes, m.map, barrier + i, {0, 0, 0, 0, 0});
  }
  NB_DEVICE void fill() const {
    for (int i = threadIdx.x; i < 2 * kBytes / 4; i += blockDim.x) word[i] = 0;
    nb::fence_async();
    __syncthreads();
  }
  NB_DEVICE uint64_t rows() const {
    return 1ull << 62 | 64ull << 32 | static_cast<uint64_t>(nb::shared_address(memory) >> 4);
  }
  NB_DEVICE uint64_t columns() const { return rows(); }
  NB_DEVICE uint64_t values() const { return rows(); }
  NB_DEVICE void multiply() {
    nb::wgmma_fence();
    nb::wgmma<__half, false>(d, rows(), columns());
    nb::wgmma_commit();
  }
  NB_DEVICE static void write(const Mapped& m, int value) { static_cast<int*>(m.p.out)[threadIdx.x] = value; }
};
