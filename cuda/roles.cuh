// roles.cuh - the roles of warps in kernels for warpgroups: consumers compute 64 rows each, the last warpgroup's first
// warp copies tiles of columns for all of them; barriers hand stages of shared memory to and fro.
#pragma once
#include "boxes.cuh"
#include "softmax.cuh"

namespace nb {
constexpr int kConsumers = Variant::kWarps / 4 - 1, kConsumerThreads = 128 * kConsumers;
// Registers of a thread: 64 K of them in all.
constexpr int kProducerRegisters = kConsumers == 2 ? 40 : 32, kConsumerRegisters = kConsumers == 2 ? 232 : 160;

NB_DEVICE bool is_consumer() { return threadIdx.x < kConsumerThreads; }
// The same for all threads of a warp, which the shuffle tells the compiler: descriptors are in uniform registers.
NB_DEVICE int warpgroup() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x / 128), 0); }

// Tile n is in stage n % kStages. Where a tile is full copies have ended, where it is empty all consumers have used it.
struct Stages {
  static constexpr int kStages = Variant::kStages, kBytes = 16 * kStages;
  Mbarrier* barrier;
  NB_DEVICE explicit Stages(unsigned char* at) : barrier(reinterpret_cast<Mbarrier*>(at)) {}
  NB_DEVICE Mbarrier* full(unsigned n) const { return barrier + n % kStages; }
  NB_DEVICE Mbarrier* empty(unsigned n) const { return barrier + kStages + n % kStages; }

  // One thread calls it. `copies`: arrivals besides the one that announces bytes.
  NB_DEVICE void init(int copies = 0) const {
#pragma unroll
    for (int n = 0; n < kStages; ++n) {
      mbarrier_init(full(n), 1 + copies);
      mbarrier_init(empty(n), 4 * kConsumers);
    }
  }
  NB_DEVICE void wait_full(unsigned n) const { mbarrier_wait(full(n), n / kStages % 2); }
  NB_DEVICE void wait_empty(unsigned n) const {
    if (n >= kStages) mbarrier_wait(empty(n), (n / kStages + 1) % 2);
  }
  // Every consumer calls it after the last read of tile n.
  NB_DEVICE void release(unsigned n) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty(n));
  }
};

// Consumers start their products in turns, so that one computes weights while another's products run.
struct Turns {
  int own, next;
  NB_DEVICE explicit Turns(int group) : own(1 + group), next(1 + (group + 1) % kConsumers) {
    if (next == 1) named_barrier_arrive(next, 256);
  }
  NB_DEVICE void begin() const { named_barrier_sync(own, 256); }
  NB_DEVICE void end() const { named_barrier_arrive(next, 256); }
  NB_DEVICE void finish() const {
    if (own == 1) named_barrier_sync(own, 256);
  }
};
// Barriers of one consumer's four warps, and of all consumers.
NB_DEVICE void wait_for_group(int group) { named_barrier_sync(2 + kConsumers + group, 128); }
NB_DEVICE void wait_for_consumers() { named_barrier_sync(1 + kConsumers, kConsumerThreads); }
}  // namespace nb
