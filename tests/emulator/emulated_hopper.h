// emulated_hopper.h - the functions of cuda/hopper.cuh for the emulator.
#pragma once
#include "emulator.h"

namespace nb {
__forceinline__ void mbarrier_init(Mbarrier* barrier, int arrivals, emulator::Site site = {}) {
  emulator::mbarrier_init(barrier, arrivals, site);
}
__forceinline__ void mbarrier_init_fence() { emulator::mbarrier_init_fence(); }
__forceinline__ void mbarrier_arrive(Mbarrier* barrier, emulator::Site site = {}) {
  emulator::mbarrier_arrive(barrier, 0, site);
}
__forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, int bytes, emulator::Site site = {}) {
  emulator::mbarrier_arrive(barrier, bytes, site);
}
__forceinline__ void mbarrier_arrive_after_copies(Mbarrier* barrier, emulator::Site site = {}) {
  emulator::mbarrier_arrive_after_copies(barrier, site);
}
__forceinline__ void mbarrier_wait(Mbarrier* barrier, int parity, emulator::Site site = {}) {
  emulator::mbarrier_wait(barrier, parity, site);
}

__forceinline__ void tma_load(void* shared, const TensorMap* map, Mbarrier* barrier, const int (&at)[5],
                              emulator::Site site = {}) {
  emulator::tma_load(shared, map, barrier, at, site);
}

__forceinline__ void fence_async() { emulator::fence_async(); }

__forceinline__ void named_barrier_sync(int number, int threads, emulator::Site site = {}) {
  emulator::named_barrier(number, threads, true, site);
}
__forceinline__ void named_barrier_arrive(int number, int threads, emulator::Site site = {}) {
  emulator::named_barrier(number, threads, false, site);
}

template <int N>
__forceinline__ void give_registers(emulator::Site site = {}) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "no such number of registers");
  emulator::change_registers(N, false, site);
}
template <int N>
__forceinline__ void take_registers(emulator::Site site = {}) {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "no such number of registers");
  emulator::change_registers(N, true, site);
}

__forceinline__ void stmatrix_x4(void* row, const uint32_t (&fragment)[4], emulator::Site site = {}) {
  emulator::stmatrix(row, fragment, site);
}
}  // namespace nb
