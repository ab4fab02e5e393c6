// warp.cpp - operations of all 32 lanes of a warp together: shuffles, votes, ldmatrix, stmatrix, mma.sync.
#include <algorithm>
#include "clocks.h"
#include "runtime.h"
#include "widened.h"

namespace emulator {
namespace {
struct Meeting {  // the operation that some lanes of a warp have reached
  const char* operation;
  Site site;
  int arrived;
  void* lane[32];  // the arguments of each lane
};
Meeting meetings[32];  // a block has at most 32 warps

// The last lane to arrive computes the operation for all lanes: finish(array of pointers to their arguments).
template <class Lane, class Finish>
void meet(unsigned mask, const char* operation, Site site, Lane& mine, Finish finish) {
  if (mask != ~0u) fail("%s at %s:%d with mask %08x: only whole warps are emulated", operation, site.file, site.line, mask);
  Meeting& meeting = meetings[current->warp];
  if (!meeting.arrived) {
    meeting.operation = operation;
    meeting.site = site;
  } else if (meeting.operation != operation || !same(meeting.site, site)) {
    fail("warp %d has diverged: %s at %s:%d, %s at %s:%d", current->warp, meeting.operation, meeting.site.file,
         meeting.site.line, operation, site.file, site.line);
  }
  meeting.lane[current->lane] = &mine;
  if (++meeting.arrived < 32) return wait_for(operation, site);
  meeting.arrived = 0;
  finish(reinterpret_cast<Lane**>(meeting.lane));
  for (int lane = 0; lane < 32; ++lane)
    if (lane != current->lane) wake(fibers[current->warp * 32 + lane]);
}

}  // namespace

void forget_meetings() {
  for (Meeting& meeting : meetings) meeting.arrived = 0;
}

void syncwarp(unsigned mask, Site site) {
  int nothing = 0;
  meet(mask, "__syncwarp", site, nothing, [](int**) { threads_meet(current->warp * 32, 32); });
}

uint64_t shuffle(unsigned mask, uint64_t value, int source, Site site) {
  struct Lane {
    uint64_t value, result;
    int source;
  } mine{value, 0, source};
  meet(mask, "a shuffle", site, mine, [](Lane** lanes) {
    for (int i = 0; i < 32; ++i) lanes[i]->result = lanes[lanes[i]->source]->value;
  });
  return mine.result;
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  struct Lane {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  meet(mask, "a vote", site, mine, [](Lane** lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(lanes[i]->predicate) << i;
    for (int i = 0; i < 32; ++i) lanes[i]->result = votes;
  });
  return mine.result;
}

void ldmatrix(uint32_t* fragment, int matrices, bool transpose, const void* row, Site site) {
  struct Lane {
    uint32_t* fragment;
    const unsigned char* row;
    const void* place;
  } mine{fragment, static_cast<const unsigned char*>(row), __builtin_return_address(0)};
  meet(~0u, "ldmatrix", site, mine, [=](Lane** lanes) {
    Thread* const caller = current;
    for (int m = 0; m < matrices; ++m) {
      int in_bank[8] = {};  // rows per group of four banks
      uint16_t matrix[8][8];
      for (int k = 0; k < 8; ++k) {
        const Lane& owner = *lanes[8 * m + k];
        current = &fibers[caller->warp * 32 + 8 * m + k];  // the lane that passes the row's address
        if (!in_shared(owner.row, 16) || reinterpret_cast<uintptr_t>(owner.row) % 16)
          fail("ldmatrix at %s:%d: lane %d names %s", site.file, site.line, 8 * m + k, address_text(owner.row).of);
        operation = owner.place;
        check_read(owner.row, 16, owner.place);
        std::memcpy(matrix[k], owner.row, 16);
        in_bank[(owner.row - shared_memory) / 16 % 8]++;
      }
      current = caller;
      launch->matrices++;
      launch->bank_ways += *std::max_element(in_bank, in_bank + 8);
      for (int i = 0; i < 32; ++i) {
        const int r = i / 4, c = i % 4 * 2;
        const uint32_t low = transpose ? matrix[c][r] : matrix[r][c];
        const uint32_t high = transpose ? matrix[c + 1][r] : matrix[r][c + 1];
        lanes[i]->fragment[m] = low | high << 16;
      }
    }
  });
}

void stmatrix(void* row, const uint32_t* fragment, Site site) {
  struct Lane {
    unsigned char* row;
    const uint32_t* fragment;
    const void* place;
  } mine{static_cast<unsigned char*>(row), fragment, __builtin_return_address(0)};
  meet(~0u, "stmatrix", site, mine, [=](Lane** lanes) {
    Thread* const caller = current;
    for (int owner = 0; owner < 32; ++owner) {  // the lane that passes the address of row owner % 8 of matrix owner / 8
      unsigned char* const to = lanes[owner]->row;
      current = &fibers[caller->warp * 32 + owner];
      if (!in_shared(to, 16) || shared_address(to) % 16)
        fail("stmatrix at %s:%d: lane %d names %s", site.file, site.line, owner, address_text(to).of);
      for (int i = 0; i < 4; ++i) {
        const int writer = owner % 8 * 4 + i;
        current = &fibers[caller->warp * 32 + writer];
        operation = lanes[writer]->place;
        check_write(to + 4 * i, 4, lanes[writer]->place);
        std::memcpy(to + 4 * i, &lanes[writer]->fragment[owner / 8], 4);
      }
    }
    current = caller;
  });
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool bfloat16, Site site) {
  struct Lane {
    float* d;
    const uint32_t *a, *b;
  } mine{d, a, b};
  meet(~0u, "mma.sync", site, mine, [=](Lane** lanes) {
    alignas(32) uint16_t left[16][16], right[16][8];
    alignas(32) float result[16][8];
    for (int i = 0; i < 32; ++i) {
      const Lane& lane = *lanes[i];
      const int g = i / 4, c = i % 4 * 2;
      for (int r = 0; r < 4; ++r) std::memcpy(&left[g + r % 2 * 8][c + r / 2 * 8], &lane.a[r], 4);
      for (int r = 0; r < 4; ++r) right[c + r % 2 + r / 2 * 8][g] = lane.b[r / 2] >> 16 * (r % 2);
      for (int r = 0; r < 4; ++r) result[g + r / 2 * 8][c + r % 2] = lane.d[r];
    }
    Row rows[16];
    for (int k = 0; k < 16; ++k) rows[k] = widened(right[k], bfloat16);
    for (int i = 0; i < 16; ++i) {
      Row sum;
      std::memcpy(&sum, result[i], 32);
      for (int h = 0; h < 2; ++h) {
        const Row factors = widened(left[i] + 8 * h, bfloat16);
        for (int k = 0; k < 8; ++k) sum += factors[k] * rows[8 * h + k];
      }
      std::memcpy(result[i], &sum, 32);
    }
    for (int i = 0; i < 32; ++i)
      for (int r = 0; r < 4; ++r) lanes[i]->d[r] = result[i / 4 + r / 2 * 8][i % 4 * 2 + r % 2];
    launch->mma++;
  });
}
}  // namespace emulator
