// hopper_mistakes.cu - one kernel per mistake with barriers, boxes and roles of sm_90a that the emulator must find.
// Comments after code mark the lines to report.
#include "hopper_mistakes.cuh"

// Barriers in shared memory.
MISTAKE(too_many_arrivals) {
  Shared s;
  s.begin(1);
  if (threadIdx.x < 2) nb::mbarrier_arrive_expect(s.barrier, kBytes);       // line: too_many_arrivals
}

MISTAKE(too_few_arrivals) {
  Shared s;
  s.begin(2);
  if (threadIdx.x == 0) nb::mbarrier_arrive(s.barrier);
  nb::mbarrier_wait(s.barrier, 0);                                          // line: too_few_arrivals
}

MISTAKE(too_many_bytes) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) s.load(m, 0, 2 * kBytes);
  nb::mbarrier_wait(s.barrier, 0);                                          // line: too_many_bytes
}

MISTAKE(bytes_that_nobody_awaits) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) s.load(m, 0, kBytes / 2);
}

MISTAKE(wrong_parity) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 127) s.load(m, 0, kBytes);                             // other: wrong_parity
  nb::mbarrier_wait(s.barrier, 1);
  s.write(m, s.word[threadIdx.x]);                                          // line: wrong_parity
}

MISTAKE(no_such_parity) {
  Shared s;
  s.begin(1);
  nb::mbarrier_wait(s.barrier, 2);                                          // line: no_such_parity
}

MISTAKE(no_barrier_there) {
  Shared s;
  s.begin(1);
  nb::mbarrier_arrive(s.barrier + 1);                                       // line: no_barrier_there
}

MISTAKE(initialised_twice) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) nb::mbarrier_init(s.barrier, 1);                    // line: initialised_twice
}

MISTAKE(overwritten_barrier) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) *reinterpret_cast<int*>(s.barrier) = 0;
  __syncthreads();
  nb::mbarrier_arrive(s.barrier);                                           // line: overwritten_barrier
}

MISTAKE(barrier_not_seen) {
  Shared s;
  if (threadIdx.x == 0) nb::mbarrier_init(s.barrier, 1);                    // other: barrier_not_seen
  if (threadIdx.x == 32) nb::mbarrier_arrive(s.barrier);                    // line: barrier_not_seen
}

MISTAKE(no_init_fence) {
  Shared s;
  if (threadIdx.x == 0) nb::mbarrier_init(s.barrier, 1);
  __syncthreads();
  if (threadIdx.x == 0) s.load(m, 0, kBytes);                               // other: no_init_fence
  nb::mbarrier_wait(s.barrier, 0);
}

MISTAKE(arrives_before_its_copies) {
  Shared s;
  s.begin(blockDim.x);
  nb::cp_async<16>(s.word + 4 * threadIdx.x, m.p.key, true);                // other: arrives_before_its_copies
  nb::mbarrier_arrive(s.barrier);
  nb::mbarrier_wait(s.barrier, 0);
  s.write(m, s.word[4 * threadIdx.x]);                                      // line: arrives_before_its_copies
}

MISTAKE(arrives_after_nothing) {
  Shared s;
  s.begin(blockDim.x);
  nb::mbarrier_arrive_after_copies(s.barrier);
  nb::cp_async<16>(s.word + 4 * threadIdx.x, m.p.key, true);                // line: arrives_after_nothing
}

MISTAKE(waits_without_acquiring) {
  Shared s;
  s.begin(1);
  s.fill();
  s.word[threadIdx.x] = 1;                                                  // other: waits_without_acquiring
  if (threadIdx.x == 0) nb::mbarrier_arrive(s.barrier);  // the others' writes are not released
  nb::mbarrier_wait(s.barrier, 0);
  s.write(m, s.word[threadIdx.x ^ 1]);                                      // line: waits_without_acquiring
}

// Boxes.
MISTAKE(box_unaligned) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0)
    nb::tma_load(s.memory + 128, m.map, s.barrier, {0, 0, 0, 0, 0});        // line: box_unaligned
}

MISTAKE(box_past_the_end) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0)
    nb::tma_load(s.memory + NB_SHARED_BYTES, m.map, s.barrier, {0, 0, 0, 0, 0});  // line: box_past_the_end
}

MISTAKE(no_map) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) nb::tma_load(s.memory, m.map + 5, s.barrier, {0, 0, 0, 0, 0});  // line: no_map
}

MISTAKE(box_not_awaited) {
  Shared s;
  s.begin(1);
  if (threadIdx.x == 0) s.load(m, 0, kBytes);
}

MISTAKE(box_of_another_barrier) {
  Shared s;
  s.begin(1, 2);
  if (threadIdx.x == 0) {
    s.load(m, 0, kBytes);                                                   // other: box_of_another_barrier
    s.load(m, 1, kBytes);
  }
  nb::mbarrier_wait(s.barrier + 1, 0);
  s.write(m, s.word[threadIdx.x]);                                          // line: box_of_another_barrier
  nb::mbarrier_wait(s.barrier, 0);
}

MISTAKE(box_over_box) {
  Shared s;
  s.begin(2);
  if (threadIdx.x < 2) s.load(m, 0, kBytes);                                // other: box_over_box
  nb::mbarrier_wait(s.barrier, 0);
}

MISTAKE(box_over_readers) {
  Shared s;
  s.begin(1);
  for (int n = 0; n < 2; ++n) {
    if (threadIdx.x == 0) s.load(m, 0, kBytes);                             // other: box_over_readers
    nb::mbarrier_wait(s.barrier, n);
    s.write(m, s.word[threadIdx.x]);                                        // line: box_over_readers
    __syncwarp();
  }
}

MISTAKE(box_without_fence) {
  Shared s;
  s.begin(1);
  s.word[threadIdx.x] = 1;                                                  // line: box_without_fence
  __syncthreads();
  if (threadIdx.x == 0) s.load(m, 0, kBytes);                               // other: box_without_fence
  nb::mbarrier_wait(s.barrier, 0);
}

MISTAKE(box_over_products) {
  Shared s;
  s.begin(1);
  s.fill();
  s.multiply();                                                             // line: box_over_products
  __syncthreads();
  if (threadIdx.x == 0) s.load(m, 0, kBytes);                               // other: box_over_products
  nb::wgmma_wait<0>();
  nb::mbarrier_wait(s.barrier, 0);
}

// Roles.
MISTAKE(named_barrier_of_too_many) {
  nb::named_barrier_sync(1, 96 + 32 * (threadIdx.x >= 64));                 // line: named_barrier_of_too_many
}

MISTAKE(named_barrier_that_waits) {
  if (threadIdx.x < 64) nb::named_barrier_sync(3, 128);                     // line: named_barrier_that_waits
}

MISTAKE(no_such_named_barrier) {
  nb::named_barrier_arrive(16, 128);                                        // line: no_such_named_barrier
}

MISTAKE(arrives_twice) {
  nb::named_barrier_arrive(2, 128);
  if (threadIdx.x < 32) nb::named_barrier_arrive(2, 128);                   // line: arrives_twice
}

MISTAKE(arrivals_left_over) {
  if (threadIdx.x < 32) nb::named_barrier_arrive(2, 64);                    // line: arrivals_left_over
}

MISTAKE(arriving_does_not_wait) {
  Shared s;
  s.fill();
  if (threadIdx.x >= 64) s.word[threadIdx.x] = 1;                           // other: arriving_does_not_wait
  if (threadIdx.x >= 64) return nb::named_barrier_sync(1, 128);
  nb::named_barrier_arrive(1, 128);
  if (threadIdx.x < 32) nb::named_barrier_sync(2, 32);
  s.write(m, s.word[threadIdx.x + 64]);                                     // line: arriving_does_not_wait
}

MISTAKE(takes_too_many_registers) {
  if (threadIdx.x < 128) nb::give_registers<32>();
  else nb::take_registers<240>();                                           // line: takes_too_many_registers
}

MISTAKE(gives_what_it_lacks) {
  nb::give_registers<232>();                                                // line: gives_what_it_lacks
}

MISTAKE(takes_fewer) {
  nb::take_registers<40>();                                                 // line: takes_fewer
}

MISTAKE(half_a_group_gives) {
  if (threadIdx.x < 64) nb::give_registers<40>();                           // line: half_a_group_gives
}

MISTAKE(stmatrix_unaligned) {
  Shared s;
  const uint32_t fragment[4] = {};
  nb::stmatrix_x4(s.memory + 8, fragment);                                  // line: stmatrix_unaligned
}

MISTAKE(stmatrix_without_syncwarp) {
  Shared s;
  const uint32_t fragment[4] = {};
  nb::stmatrix_x4(s.memory + 16 * threadIdx.x, fragment);                   // other: stmatrix_without_syncwarp
  s.write(m, s.word[4 * threadIdx.x]);                                      // line: stmatrix_without_syncwarp
}
