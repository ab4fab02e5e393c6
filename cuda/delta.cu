// delta.cu - computes delta = sum(out * grad_out) - grad_lse of every row for the backward, one warp per row.
#include "block.cuh"
#include "element.cuh"

namespace nb {
NB_DEVICE void delta(const Params& p) {
  static_assert(NB_SHARED_BYTES == 0, "no shared memory");
  const Axis* a = p.axis;
  const long long tokens = static_cast<long long>(a[0].queries) * a[1].queries * a[2].queries;
  const int lane = threadIdx.x % 32;
  const long long row = static_cast<long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= tokens * p.batch * p.heads) return;
  const int head = static_cast<int>(row % p.heads);
  const long long token = row / p.heads % tokens, sample = row / p.heads / tokens;
  const Place place = {{static_cast<int>(token / a[2].queries / a[1].queries),
                        static_cast<int>(token / a[2].queries % a[1].queries), static_cast<int>(token % a[2].queries)},
                       true};
  const Strides& s = p.grad_out_stride;
  const Element* const grad =
      static_cast<const Element*>(p.grad_out) + sample * s.batch + head * s.head + place.offset(s);
  const Element* const out = static_cast<const Element*>(p.out) + row * NB_VALUE_DIM;
  Accumulator sum = 0;
  for (int c = lane; c < NB_VALUE_DIM; c += 32) sum += widen(out[c]) * widen(grad[c * s.channel]);
#pragma unroll
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane) return;
  if (p.grad_lse) sum -= static_cast<const Accumulator*>(p.grad_lse)[row];
  static_cast<Accumulator*>(p.delta)[row] = sum;
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_delta(const __grid_constant__ nb::Params p) { nb::delta(p); }
