// memory.h - a thread's scratch memory, and the memory of new tensors: large pages, zeros.
#pragma once
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "job.h"
#include "pool.h"

namespace nb {
// A thread's scratch memory: it grows, is kept for the next call, and ends with the thread. It is mapped, not taken from
// the heap, so that what it outgrew goes back to the system; the page behind it must not be touched.
struct Scratch {
  char* end;
  long bytes, mapped;
};
inline void unmap(void* own) {
  if (own) munmap(own, static_cast<Scratch*>(own)->mapped);
}
inline pthread_key_t scratch_key, table_key;  // what a thread works in; the table of its call
__attribute__((constructor)) inline void make_keys() {
  pthread_key_create(&scratch_key, unmap);
  pthread_key_create(&table_key, unmap);
}
inline Scratch* map(long bytes) {
  const long page = sysconf(_SC_PAGESIZE), used = (long(sizeof(Scratch)) + bytes + page - 1) / page * page;
  void* const memory = mmap(nullptr, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) abort();
  char* const end = static_cast<char*>(memory) + used;
  mprotect(end, page, PROT_NONE);
  Scratch* const own = static_cast<Scratch*>(memory);
  *own = {end, bytes, used + page};
  return own;
}
// So many bytes, a multiple of 64, up to the page that must not be touched: aligned to 64, too.
inline char* kept_memory(pthread_key_t key, long bytes) {
  Scratch* own = static_cast<Scratch*>(pthread_getspecific(key));
  if (!own || own->bytes < bytes) {
    unmap(own);
    pthread_setspecific(key, nullptr);
    own = map(bytes);
    pthread_setspecific(key, own);
  }
  return own->end - bytes;
}
// Gives it back to the system if it is larger than `most` bytes.
inline void forget_memory(pthread_key_t key, long most) {
  Scratch* const own = static_cast<Scratch*>(pthread_getspecific(key));
  if (!own || own->bytes <= most) return;
  unmap(own);
  pthread_setspecific(key, nullptr);
}

// Asks for large pages under a new tensor: each first touch of a small one is a fault, and faults of
// several threads wait for each other. Only from 32 MiB on, where the C library maps memory that ends with the tensor:
// else later tensors would take the pages, whole ones for a part.
inline void ask_for_large_pages(void* data, long long bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage,
                  stop = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kPage * kPage;
  if (data && bytes >= 32 << 20) madvise(reinterpret_cast<void*>(first), stop - first, MADV_HUGEPAGE);
#endif
}
inline void ask_for_large_pages(const Job& job) {
  const Params& p = job.params;
  const long long queries = rows_of(job, false) * size_of(job.type), keys = rows_of(job, true) * size_of(job.type);
  if (job.pass == kForward) ask_for_large_pages(p.out, queries * job.value_dim);
  if (job.pass == kGradQuery || job.pass == kGradAll) ask_for_large_pages(p.grad_query, queries * job.head_dim);
  if (job.pass == kGradKey || job.pass == kGradAll) {
    ask_for_large_pages(p.grad_key, keys * job.head_dim);
    ask_for_large_pages(p.grad_value, keys * job.value_dim);
  }
}

// Sets the gradients of keys and values to zero, a part at a time.
constexpr long long kPart = 1 << 20;
struct Zeros {
  char* data[2];
  long long bytes[2], most, next;
};
inline void fill(void* data) {
  Zeros& zeros = *static_cast<Zeros*>(data);
  for (long long at; (at = __atomic_fetch_add(&zeros.next, kPart, __ATOMIC_RELAXED)) < zeros.most;)
    for (int i = 0; i < 2; ++i) {
      const long long left = zeros.bytes[i] - at;
      if (left > 0) memset(zeros.data[i] + at, 0, left < kPart ? left : kPart);
    }
}
inline void clear_gradients(const Job& job) {
  const long long keys = rows_of(job, true) * size_of(job.type);
  Zeros zeros = {{static_cast<char*>(job.params.grad_key), static_cast<char*>(job.params.grad_value)},
                 {keys * job.head_dim, keys * job.value_dim},
                 keys * (job.head_dim > job.value_dim ? job.head_dim : job.value_dim),
                 0};
  const long long parts = (zeros.most + kPart - 1) / kPart;
  run_on(int(parts < job.threads ? parts : job.threads), fill, &zeros);
}
}  // namespace nb
