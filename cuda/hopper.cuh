// hopper.cuh - inline PTX of sm_90a, but for products: barriers that count bytes, boxes by tensor maps, warps with
// roles. tests/emulator/emulated_hopper.h emulates each function.
#pragma once
#include "ptx.cuh"

namespace nb {
// A tensor's address, lengths and steps, and the box that one copy moves; nbattn/kernels/tensor_maps.py makes it.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};
// In shared memory. A phase ends when all arrivals and all expected bytes are there; phases have the parity 0, 1, 0 ...
typedef unsigned long long Mbarrier;
}  // namespace nb

#ifdef NB_EMULATOR
#include "emulated_hopper.h"
#else
namespace nb {
NB_DEVICE void mbarrier_init(Mbarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to copies; then __syncthreads makes them visible to the block.
NB_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

NB_DEVICE void mbarrier_arrive(Mbarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and adds to the bytes that copies have to bring before the phase ends.
NB_DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Arrives when this thread's cp.async copies so far are done; counts as one of the barrier's arrivals.
NB_DEVICE void mbarrier_arrive_after_copies(Mbarrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Returns once the phase of this parity has ended.
NB_DEVICE void mbarrier_wait(Mbarrier* barrier, int parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{ .reg .pred ended; mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2; selp.u32 %0, 1, 0, ended; }"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!ended);
}

// Copies the box at these coordinates, innermost first, and tells the barrier its bytes: always those of the whole box;
// what is outside the tensor becomes zeros.
NB_DEVICE void tma_load(void* shared, const TensorMap* map, Mbarrier* barrier, const int (&at)[5]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}

// This thread's ordinary writes to shared memory before it can be read by wgmma after it (and after a barrier, if
// other threads start those).
NB_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers 1 to 15 of the block: `threads` have to come; those that arrive go on at once.
NB_DEVICE void named_barrier_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
NB_DEVICE void named_barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// A warpgroup gives registers back, or waits for more: from here on its threads have N each.
template <int N>
NB_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
NB_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// The inverse of ldmatrix_x4: lane 8 i + k passes the address of row k of matrix i.
NB_DEVICE void stmatrix_x4(void* row, const uint32_t (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}
}  // namespace nb
#endif
