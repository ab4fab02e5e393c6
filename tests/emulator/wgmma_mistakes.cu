// wgmma_mistakes.cu - one kernel per mistake with products of warpgroups that the emulator must find. Comments after code
// mark the lines to report.
#include "hopper_mistakes.cuh"

MISTAKE(products_without_fence) {
  Shared s;
  s.fill();
  nb::wgmma<__half, true>(s.d, s.rows(), s.columns());                      // line: products_without_fence
}

MISTAKE(no_fence_after_wait) {
  Shared s;
  s.fill();
  s.multiply();
  nb::wgmma_wait<0>();
  s.d[0][0] *= 2.f;
  nb::wgmma<__half, true>(s.d, s.rows(), s.columns());                      // line: no_fence_after_wait
}

MISTAKE(writes_after_fence) {
  Shared s;
  s.fill();
  s.multiply();
  nb::wgmma_wait<0>();
  nb::wgmma_fence();
  s.d[0][0] = 2.f;
  nb::wgmma<__half, true>(s.d, s.rows(), s.columns());                      // line: writes_after_fence
  nb::wgmma_wait<0>();
}

MISTAKE(writes_accumulators) {
  Shared s;
  s.fill();
  s.multiply();                                                             // other: writes_accumulators
  s.d[7][3] = 0.f;
  nb::wgmma_wait<0>();
}

MISTAKE(writes_operands) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half>(s.d, s.a, s.values());                                  // line: writes_operands
  nb::wgmma_commit();
  s.a[3] = 1;
  nb::wgmma_wait<0>();
}

MISTAKE(products_not_awaited) {
  Shared s;
  s.fill();
  s.multiply();                                                             // other: products_not_awaited
  nb::wgmma_wait<1>();
}

MISTAKE(products_not_committed) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half, false>(s.d, s.rows(), s.columns());                     // line: products_not_committed
  nb::wgmma_wait<0>();
}

MISTAKE(different_descriptors) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half, false>(s.d, s.rows(), s.columns() + (threadIdx.x < 64 ? 0 : 2));  // line: different_descriptors
  nb::wgmma_wait<0>();
}

MISTAKE(products_of_three_warps) {
  Shared s;
  s.fill();
  if (threadIdx.x < 96) s.multiply();
  nb::wgmma_wait<0>();                                                      // line: products_of_three_warps
}

MISTAKE(products_of_a_warp) {
  Shared s;
  s.fill();
  if (threadIdx.x < 32) {
    s.multiply();
    nb::wgmma_wait<0>();                                                    // line: products_of_a_warp
  }
}

MISTAKE(no_fence_async) {
  Shared s;
  s.word[threadIdx.x] = 0;                                                  // line: no_fence_async
  __syncthreads();
  s.multiply();                                                             // other: no_fence_async
  nb::wgmma_wait<0>();
}

MISTAKE(fence_before_the_writes) {
  Shared s;
  nb::fence_async();
  s.word[threadIdx.x] = 0;                                                  // line: fence_before_the_writes
  __syncthreads();
  s.multiply();
  nb::wgmma_wait<0>();
}

MISTAKE(products_before_a_barrier) {
  Shared s;
  for (int i = threadIdx.x; i < NB_SHARED_BYTES / 4; i += 128) s.word[i] = 0;  // line: products_before_a_barrier
  nb::fence_async();
  s.multiply();                                                             // other: products_before_a_barrier
  nb::wgmma_wait<0>();
}

MISTAKE(products_of_nothing) {
  Shared s;
  s.multiply();                                                             // other: products_of_nothing
  nb::wgmma_wait<0>();
}

MISTAKE(products_of_a_box_in_flight) {
  Shared s;
  s.begin(1);
  s.fill();
  if (threadIdx.x == 0) s.load(m, 0, kBytes);                               // line: products_of_a_box_in_flight
  s.multiply();                                                             // other: products_of_a_box_in_flight
  nb::wgmma_wait<0>();
}

MISTAKE(writes_over_products) {
  Shared s;
  s.fill();
  s.multiply();                                                             // other: writes_over_products
  __syncthreads();
  s.word[threadIdx.x] = 1;                                                  // line: writes_over_products
  nb::wgmma_wait<0>();
}

MISTAKE(releases_before_the_wait) {
  Shared s;
  s.begin(128);
  s.fill();
  s.multiply();                                                             // other: releases_before_the_wait
  nb::mbarrier_arrive(s.barrier);
  nb::wgmma_wait<0>();
  if (threadIdx.x) return;
  nb::mbarrier_wait(s.barrier, 0);
  s.word[1023] = 1;                                                         // line: releases_before_the_wait
}

MISTAKE(descriptor_without_swizzle) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half, false>(s.d, s.rows() << 2 >> 2, s.columns());           // other: descriptor_without_swizzle
  nb::wgmma_commit();
  nb::wgmma_wait<0>();
}

MISTAKE(descriptor_of_a_second_row) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half, false>(s.d, s.rows(), s.columns() + 8);                 // line: descriptor_of_a_second_row
  nb::wgmma_commit();
  nb::wgmma_wait<0>();
}

MISTAKE(descriptor_past_the_end) {
  Shared s;
  s.fill();
  nb::wgmma_fence();
  nb::wgmma<__half, false>(s.d, s.rows(), s.columns() + 576);  // line: descriptor_past_the_end
  nb::wgmma_commit();
  nb::wgmma_wait<0>();
}
