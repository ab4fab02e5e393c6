// vector.h - 16 numbers, one for each row of a tile, in vectors of the compiler as wide as the machine's.
#pragma once
#include <stdint.h>

#define NB_INLINE inline __attribute__((always_inline))
#define NB_APART __attribute__((noinline))  // for loops whose registers must be theirs alone
#define NB_LIKE(type, bytes) typedef type __attribute__((vector_size(bytes)))
#ifdef __clang__
#define NB_UNROLL _Pragma("clang loop unroll(full)")
#else
#define NB_UNROLL _Pragma("GCC unroll 32")
#endif

namespace nb {
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif
constexpr int kLanes = 16;  // rows of a tile
constexpr int kQuarters = 4, kQuarterLanes = kLanes / kQuarters;

// The vectors of a number type, and those of integers as wide.
template <class F>
struct Simd;
template <>
struct Simd<float> {
  NB_LIKE(float, kVectorBytes) V;
  NB_LIKE(int32_t, kVectorBytes) I;
  NB_LIKE(uint32_t, kVectorBytes) U;
  typedef uint32_t Word;
};
template <>
struct Simd<double> {
  NB_LIKE(double, kVectorBytes) V;
  NB_LIKE(int64_t, kVectorBytes) I;
  NB_LIKE(uint64_t, kVectorBytes) U;
  typedef uint64_t Word;
};
template <class F>
constexpr int kVectors = kLanes * int(sizeof(F)) / kVectorBytes;  // vectors of 16 numbers

template <class F>
struct Wide {  // a number for each lane
  typename Simd<F>::V v[kVectors<F>];
  NB_INLINE F& lane(int i) { return reinterpret_cast<F*>(v)[i]; }
  NB_INLINE F lane(int i) const { return numbers()[i]; }
  NB_INLINE const F* numbers() const { return reinterpret_cast<const F*>(v); }
};
template <class F>
struct Words {  // an unsigned integer for each lane, as wide as its number
  typename Simd<F>::U v[kVectors<F>];
  NB_INLINE typename Simd<F>::Word& lane(int i) { return reinterpret_cast<typename Simd<F>::Word*>(v)[i]; }
};

// x - 0 is x; 0 + x would cost an addition, since it turns -0 into 0.
template <class F>
NB_INLINE typename Simd<F>::V splat(F x) {
  return x - typename Simd<F>::V{};
}
template <class F>
NB_INLINE Wide<F> wide(F x) {
  Wide<F> y;
  NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) y.v[i] = splat<F>(x);
  return y;
}
#define NB_OPERATOR(op)                                                                \
  template <class F>                                                                   \
  NB_INLINE Wide<F> operator op(const Wide<F>& a, const Wide<F>& b) {                  \
    Wide<F> y;                                                                         \
    NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) y.v[i] = a.v[i] op b.v[i];         \
    return y;                                                                          \
  }
NB_OPERATOR(+)
NB_OPERATOR(-)
NB_OPERATOR(*)
NB_OPERATOR(/)
#undef NB_OPERATOR

template <class F>
NB_INLINE Wide<F> max_of(const Wide<F>& a, const Wide<F>& b) {  // a NaN in b is lost
  Wide<F> y;
  NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) y.v[i] = b.v[i] > a.v[i] ? b.v[i] : a.v[i];
  return y;
}
// `other` in the lanes where x is below `bound`, else x.
template <class F>
NB_INLINE Wide<F> where_below(const Wide<F>& x, F bound, const Wide<F>& other) {
  Wide<F> y;
  NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) y.v[i] = x.v[i] < splat<F>(bound) ? other.v[i] : x.v[i];
  return y;
}

// 2^r = sum of c[i] r^i for |r| <= 1/2, within 2e-9 (float, fitted) and 1e-17 (double, Taylor), highest power first.
template <class F>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float kMagic = 12582912.f, kLeast = -126.f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kShift = 23;
  static constexpr float c[] = {1.534581199e-04f, 1.339993122e-03f, 9.618488957e-03f, 5.550328777e-02f,
                                2.402264689e-01f, 6.931472057e-01f, 1.f};
};
template <>
struct Exp2<double> {
  static constexpr double kMagic = 6755399441055744., kLeast = -1022.;  // 1.5 * 2^52
  static constexpr int kShift = 52;
  static constexpr double c[] = {1.3691488853904129e-12, 2.5678435993488205e-11, 4.4455382718708116e-10,
                                 7.0549116208011233e-09, 1.0178086009239699e-07, 1.3215486790144309e-06,
                                 1.5252733804059840e-05, 1.5403530393381610e-04, 1.3333558146428443e-03,
                                 9.6181291076284772e-03, 5.5504108664821580e-02, 2.4022650695910072e-01,
                                 6.9314718055994531e-01, 1.};
};
// 2^x for x below 128 (double: 1024), 0 where that is below the least normal number, NaN for NaN.
template <class F>
NB_INLINE typename Simd<F>::V exp2_of(typename Simd<F>::V x) {
  typedef Exp2<F> E;
  typedef typename Simd<F>::V V;
  typedef typename Simd<F>::U U;
  const V least = splat<F>(E::kLeast), magic = splat<F>(E::kMagic);
  const V c = x < least ? least : x, t = c + magic, r = c - (t - magic);
  V p = splat<F>(E::c[0]);
  NB_UNROLL for (unsigned i = 1; i < sizeof(E::c) / sizeof(F); ++i) p = p * r + E::c[i];
  // A product, since the sum of p's bits and the exponent would be a number for some NaN.
  const V y = p * (V)(((U)t << E::kShift) + (U)splat<F>(F(1)));
  return x < least ? V{} : y;
}
template <class F>
NB_INLINE Wide<F> exp2_of(const Wide<F>& x) {
  Wide<F> y;
  NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) y.v[i] = exp2_of<F>(x.v[i]);
  return y;
}

// tanh within 2 units in the last place: x + x^3 P(x^2) / Q(x^2) below 0.625 (float: Q is 1), else 1 - 2 / (e^2x + 1).
// P and Q are those of Cephes.
template <class F>
struct Tanh;
template <>
struct Tanh<float> {
  static constexpr float p[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                -3.33332819422e-1f};
  static constexpr float q[] = {1.f};
  static constexpr float kMost = 20.f;  // 1 from here on
};
template <>
struct Tanh<double> {
  static constexpr double p[] = {-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3};
  static constexpr double q[] = {1., 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3};
  static constexpr double kMost = 40.;
};
template <class F>
NB_INLINE Wide<F> tanh_of(const Wide<F>& wide_x) {
  typedef typename Simd<F>::V V;
  Wide<F> y;
  NB_UNROLL for (int i = 0; i < kVectors<F>; ++i) {
    const V x = wide_x.v[i], z = x * x, size = x < V{} ? -x : x, most = splat<F>(Tanh<F>::kMost);
    V p = splat<F>(Tanh<F>::p[0]), q = splat<F>(Tanh<F>::q[0]);
    NB_UNROLL for (unsigned k = 1; k < sizeof(Tanh<F>::p) / sizeof(F); ++k) p = p * z + Tanh<F>::p[k];
    NB_UNROLL for (unsigned k = 1; k < sizeof(Tanh<F>::q) / sizeof(F); ++k) q = q * z + Tanh<F>::q[k];
    const V e = exp2_of<F>((size > most ? most : size) * F(2.8853900817779268));
    const V far = F(1) - F(2) / (e + F(1));
    y.v[i] = size < splat<F>(F(0.625)) ? x + x * z * (p / q) : (x < V{} ? -far : far);
  }
  return y;
}

// Squares of L rows are transposed in log2(L) exchanges of halves, quarters ...
template <class F>
struct Square {
  static constexpr int L = kVectorBytes / int(sizeof(F));
  typedef typename Simd<F>::V V;
#ifdef __clang__
  template <int H, bool kHigh, int... N>
  static NB_INLINE V exchanged(V a, V b) {
    return __builtin_shufflevector(a, b, (N & H ? (kHigh ? L + N : L + N - H) : (kHigh ? N + H : N))...);
  }
  template <int H, bool kHigh>
  static NB_INLINE V half(V a, V b) {
    if constexpr (L == 16) return exchanged<H, kHigh, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(a, b);
    else if constexpr (L == 8) return exchanged<H, kHigh, 0, 1, 2, 3, 4, 5, 6, 7>(a, b);
    else if constexpr (L == 4) return exchanged<H, kHigh, 0, 1, 2, 3>(a, b);
    else return exchanged<H, kHigh, 0, 1>(a, b);
  }
#else
  template <int H, bool kHigh>
  static NB_INLINE V half(V a, V b) {
    typename Simd<F>::I from;
    NB_UNROLL for (int n = 0; n < L; ++n) from[n] = n & H ? (kHigh ? L + n : L + n - H) : (kHigh ? n + H : n);
    return __builtin_shuffle(a, b, from);
  }
#endif
  template <int H>
  static NB_INLINE void exchange(V (&x)[L]) {
    if constexpr (H < L) {
      NB_UNROLL for (int i = 0; i < L; ++i) if (!(i & H)) {
        const V a = x[i], b = x[i + H];
        x[i] = half<H, false>(a, b);
        x[i + H] = half<H, true>(a, b);
      }
      exchange<2 * H>(x);
    }
  }
  static NB_INLINE void transpose(V (&x)[L]) { exchange<1>(x); }
};

// to[c] = the numbers of column c in 16 rows of `columns` numbers, a multiple of 16; bits are kept.
template <class F>
inline void rows_to_lanes(const F* rows, int columns, Wide<F>* to) {
  constexpr int L = Square<F>::L;
  typedef typename Simd<F>::V V;
  for (int v = 0; v < kVectors<F>; ++v)
    for (int c = 0; c < columns; c += L) {
      V x[L];
      NB_UNROLL for (int i = 0; i < L; ++i) x[i] = *reinterpret_cast<const V*>(rows + (v * L + i) * columns + c);
      Square<F>::transpose(x);
      NB_UNROLL for (int i = 0; i < L; ++i) to[c + i].v[v] = x[i];
    }
}
}  // namespace nb
