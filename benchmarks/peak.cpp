// Multiply-adds in registers only: 12 independent chains of vectors. An FMA's latency times the FMAs of a
// cycle is 8 to 10 on today's cores, and 12 chains and two factors fit into 16 registers.
#ifdef __AVX512F__
#define WIDEST 16
#elif defined(__AVX__)
#define WIDEST 8
#else
#define WIDEST 4
#endif
enum { CHAINS = 12 };

template <class Vector> static float chains(long steps) {
  float factor = 0.999f, sum = 0;
  asm volatile("" : "+m"(factor));  // unknown to the compiler
  const Vector x = factor - Vector{}, y = (1 - factor) - Vector{};
  Vector a[CHAINS];
#pragma GCC unroll 12
  for (int j = 0; j < CHAINS; ++j) a[j] = x * float(j + 1);  // equal chains would become one
  for (long i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < CHAINS; ++j) a[j] = a[j] * x + y;
  }
#pragma GCC unroll 12
  for (int j = 0; j < CHAINS; ++j) sum += a[j][0];
  return sum;
}

extern "C" int widest() { return WIDEST; }
extern "C" float run(int lanes, long steps) {
  typedef float Floats4 __attribute__((vector_size(16)));
  typedef float Floats8 __attribute__((vector_size(32)));
  typedef float Floats16 __attribute__((vector_size(64)));
#if WIDEST >= 16
  if (lanes == 16) return chains<Floats16>(steps);
#endif
#if WIDEST >= 8
  if (lanes == 8) return chains<Floats8>(steps);
#endif
  return chains<Floats4>(steps);
}
