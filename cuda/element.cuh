// element.cuh - the tensors' element types, and the accumulator type of each.
#pragma once
#include "base.cuh"

namespace nb {
template <int kDtype>
struct ElementOf;
template <>
struct ElementOf<0> {
  using type = __half;
  using accumulator = float;
};
template <>
struct ElementOf<1> {
  using type = __nv_bfloat16;
  using accumulator = float;
};
template <>
struct ElementOf<2> {
  using type = float;
  using accumulator = float;
};
template <>
struct ElementOf<3> {
  using type = double;
  using accumulator = double;
};
using Element = ElementOf<NB_DTYPE>::type;
using Accumulator = ElementOf<NB_DTYPE>::accumulator;

NB_DEVICE float widen(__half x) { return __half2float(x); }
NB_DEVICE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
NB_DEVICE float widen(float x) { return x; }
NB_DEVICE double widen(double x) { return x; }
NB_DEVICE void store(__half* to, float x) { *to = __float2half_rn(x); }
NB_DEVICE void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
NB_DEVICE void store(float* to, float x) { *to = x; }
NB_DEVICE void store(double* to, double x) { *to = x; }

// Accurate to a few ulp, unlike the approximations in the tensor-core kernels.
NB_DEVICE float exp_of(float x) { return expf(x); }
NB_DEVICE double exp_of(double x) { return exp(x); }
NB_DEVICE float log_of(float x) { return logf(x); }
NB_DEVICE double log_of(double x) { return log(x); }
NB_DEVICE float tanh_of(float x) { return tanhf(x); }
NB_DEVICE double tanh_of(double x) { return tanh(x); }
NB_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
NB_DEVICE double larger(double a, double b) { return fmax(a, b); }
}  // namespace nb
