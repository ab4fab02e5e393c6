// mistakes.cuh - mistakes in a header: the emulator must report this file and the caller.
#pragma once
#include "params.h"

inline int element_after(const nb::Params& p) {
  return static_cast<const int*>(p.query)[threadIdx.x + 1];  // line: element_after
}

__attribute__((noinline)) inline int deeper(const nb::Params& p, int depth) {
  volatile int room[1024];
  room[depth % 1024] = depth;
  return depth == p.axis[0].keys ? 0 : deeper(p, depth + 1) + room[depth % 1024];
}
