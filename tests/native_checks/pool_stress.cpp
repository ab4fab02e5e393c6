// pool_stress.cpp - calls of the kernels' pool alone: many at once, with growing numbers of threads, and around fork().
// The thread sanitizer watches the same program. Prints what is wrong and ends with 1.
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool.h"

namespace {
constexpr int kItems = 40, kCallers = 4, kCalls = 150;

void check(bool right, const char* text) {
  if (right) return;
  fprintf(stderr, "%s\n", text);
  _exit(1);
}

struct Work {
  int next, inside, most;  // the next item; threads at work, and how many there were at once
  int done[kItems];        // not atomic: every item belongs to one thread, and to the caller at the end
};
void run(void* data) {
  Work& work = *static_cast<Work*>(data);
  const int inside = __atomic_add_fetch(&work.inside, 1, __ATOMIC_RELAXED);
  int most = __atomic_load_n(&work.most, __ATOMIC_RELAXED);
  while (most < inside && !__atomic_compare_exchange_n(&work.most, &most, inside, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  for (int item; (item = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED)) < kItems;) ++work.done[item];
  __atomic_sub_fetch(&work.inside, 1, __ATOMIC_RELAXED);
}
void call(int threads) {
  Work work = {};
  nb::run_on(threads, run, &work);
  for (int item = 0; item < kItems; ++item) check(work.done[item] == 1, "an item was not done once");
  check(work.most <= threads, "more threads at once than asked for");
}
void* caller(void* data) {
  const long first = reinterpret_cast<long>(data);
  for (int i = 0; i < kCalls; ++i) call(1 + (first + i) % 5);
  return nullptr;
}

// Waits until helpers have joined the work, or tells that none did.
struct Meeting {
  pthread_mutex_t mutex;
  pthread_cond_t met;
  int there, wanted;
};
void meet(void* data) {
  Meeting& meeting = *static_cast<Meeting*>(data);
  timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += 10;
  pthread_mutex_lock(&meeting.mutex);
  if (++meeting.there == meeting.wanted) pthread_cond_broadcast(&meeting.met);
  while (meeting.there < meeting.wanted)
    check(!pthread_cond_timedwait(&meeting.met, &meeting.mutex, &until), "helpers did not join the work");
  pthread_mutex_unlock(&meeting.mutex);
}
void all_meet(int threads) {
  Meeting meeting = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, threads};
  nb::run_on(threads, meet, &meeting);
  check(meeting.there == threads, "other threads than asked for");
}

void wait_for(pid_t child, const char* text) {
  int status = 0;
  check(child > 0 && waitpid(child, &status, 0) == child && status == 0, text);
}
void children_of_a_call(void* data) {
  int* const entered = static_cast<int*>(data);
  if (__atomic_add_fetch(entered, 1, __ATOMIC_RELAXED) > 1) return;
  const pid_t child = fork();  // with this very work open
  if (child) return wait_for(child, "a child of a call in progress");
  alarm(20);
  const int before = *entered;
  all_meet(4);
  usleep(50000);  // helpers that see more work take it
  check(__atomic_load_n(entered, __ATOMIC_RELAXED) == before, "a child does its parent's work");
  _exit(0);
}
}  // namespace

int main() {
  alarm(40);
  for (int threads = 2; threads < 6; ++threads) all_meet(threads);
  pthread_t threads[kCallers];
  for (long i = 0; i < kCallers; ++i)
    check(!pthread_create(&threads[i], nullptr, caller, reinterpret_cast<void*>(i)), "no thread");
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  for (int i = 0; i < 2000; ++i) call(2);  // most helpers wake too late
  int entered = 0;
  nb::run_on(6, children_of_a_call, &entered);
  pthread_mutex_lock(&nb::pool.mutex);  // as if another thread were in the pool
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    all_meet(3);
    _exit(0);
  }
  pthread_mutex_unlock(&nb::pool.mutex);
  wait_for(child, "a child of a process whose pool is locked");
  all_meet(5);
  return 0;
}
