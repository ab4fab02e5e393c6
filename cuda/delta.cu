// delta.cu - prepares the backward: for every row, its logsumexp in units of log 2 and
// delta = sum(out * grad_out) - grad_lse; both are 0 for rows without keys, whose scores are all masked. Lanes in
// powers of two share a row.
#include "block.cuh"
#include "element.cuh"

namespace nb {
constexpr int kValueDim = Variant::kValueDim;
// A lane has whole chunks of 16 bytes, and loads them at once if the tensors allow it: the order of sums, and so every
// bit, is the same for all strides.
constexpr int kWide = kValueDim * sizeof(Element) % 16 == 0 ? 16 / sizeof(Element) : 1;
constexpr int lanes_of(int chunks) { return chunks >= 32 ? 32 : chunks <= 1 ? 1 : 2 * lanes_of((chunks + 1) / 2); }
constexpr int kLanes = lanes_of(kValueDim / kWide), kRowsPerBlock = 128 / kLanes;

NB_DEVICE long long grad_offset(const Params& p, long long row) {
  const Held* held = p.held;
  unsigned long long at = row / p.heads;
  const int head = static_cast<int>(row - static_cast<long long>(at) * p.heads);
  Coord coord = {{0, 0, 0}, true};
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const unsigned length = held[axis].queries;
    unsigned long long more;  // 32-bit divisions where they suffice
    if (at >> 32) more = at / length;
    else more = static_cast<unsigned>(at) / length;
    coord.at[axis] = static_cast<int>(at - more * length);
    at = more;
  }
  const Strides& s = p.grad_out_stride;
  return static_cast<long long>(at) * s.batch + head * s.head + coord.offset(s);
}

NB_DEVICE void delta(const Params& p) {
  static_assert(NB_SHARED_BYTES == 0, "no shared memory");
  const long long rows =
      static_cast<long long>(p.held[0].queries) * p.held[1].queries * p.held[2].queries * p.batch * p.heads;
  const int lane = threadIdx.x % kLanes;
  const long long row = static_cast<long long>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kLanes;
  const bool inside = row < rows;  // all lanes stay, for the shuffles
  Accumulator sum = 0;
  if (inside) {
    const Element* const grad = static_cast<const Element*>(p.grad_out) + grad_offset(p, row);
    const Element* const out = static_cast<const Element*>(p.out) + row * kValueDim;
    const long long step = p.grad_out_stride.channel;
#pragma unroll
    for (int c = lane * kWide; c < kValueDim; c += kLanes * kWide) {
      alignas(16) Element a[kWide], b[kWide];
      if constexpr (Variant::kVector && kWide > 1) {
        *reinterpret_cast<uint4*>(a) = *reinterpret_cast<const uint4*>(out + c);
        *reinterpret_cast<uint4*>(b) = *reinterpret_cast<const uint4*>(grad + c);
      } else {
#pragma unroll
        for (int e = 0; e < kWide; ++e) {
          a[e] = out[c + e];
          b[e] = grad[(c + e) * step];
        }
      }
#pragma unroll
      for (int e = 0; e < kWide; ++e) sum += widen(a[e]) * widen(b[e]);
    }
  }
#pragma unroll
  for (int step = kLanes / 2; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane || !inside) return;
  if (p.grad_lse) sum -= static_cast<const Accumulator*>(p.grad_lse)[row];
  const Accumulator lse = static_cast<const Accumulator*>(p.lse)[row], log2e = 1.4426950408889634;
  Accumulator* const terms = static_cast<Accumulator*>(p.delta) + 2 * row;
  const bool empty = lse == -NB_INFINITY;  // no gradient of such a row may reach another one
  terms[0] = empty ? Accumulator(0) : lse * log2e;
  terms[1] = empty ? Accumulator(0) : sum;
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_delta(const __grid_constant__ nb::Params p) { nb::delta(p); }
