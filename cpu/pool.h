// pool.h - threads that sleep between calls. Work is handed out by a counter; a helper that wakes too late finds the
// work closed, and nobody waits for it. A child of fork() starts with an empty pool.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <string.h>

namespace nb {
struct Task {
  void (*run)(void* data);
  void* data;
  int wanted, active;  // helpers that may still join, that are at work
  Task* next;
};

struct Pool {
  pthread_mutex_t mutex;
  pthread_cond_t work, done;
  Task* first;
  int threads, idle;
};
inline Pool pool;

inline void reset_pool() {  // in a child of fork() the helpers are gone, and locks may be held by them
  memset(&pool, 0, sizeof(pool));
  pthread_mutex_init(&pool.mutex, nullptr);
  pthread_cond_init(&pool.work, nullptr);
  pthread_cond_init(&pool.done, nullptr);
}
__attribute__((constructor)) inline void start_pool() {
  reset_pool();
  pthread_atfork(nullptr, nullptr, reset_pool);
}

inline Task* open_task() {
  for (Task* task = pool.first; task; task = task->next)
    if (task->wanted > 0) return task;
  return nullptr;
}
inline void* help(void*) {
  pthread_mutex_lock(&pool.mutex);
  for (;;) {
    Task* task = open_task();
    if (!task) {
      ++pool.idle;
      pthread_cond_wait(&pool.work, &pool.mutex);
      --pool.idle;
      continue;
    }
    --task->wanted;
    ++task->active;
    pthread_mutex_unlock(&pool.mutex);
    task->run(task->data);
    pthread_mutex_lock(&pool.mutex);
    if (--task->active == 0) pthread_cond_broadcast(&pool.done);
  }
}
inline void add_threads(int count) {
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);  // signals are for the caller's threads
  for (; pool.threads < count; ++pool.threads) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, help, nullptr)) break;  // fewer helpers
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// Runs run(data) on this thread and on up to threads - 1 helpers.
inline void run_on(int threads, void (*run)(void*), void* data) {
  if (threads <= 1) return run(data);
  Task task = {run, data, threads - 1, 0, nullptr};
  pthread_mutex_lock(&pool.mutex);
  add_threads(threads - 1);
  task.next = pool.first;
  pool.first = &task;
  if (threads == 2) pthread_cond_signal(&pool.work);
  else pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.mutex);
  run(data);
  pthread_mutex_lock(&pool.mutex);
  Task** at = &pool.first;
  while (*at != &task) at = &(*at)->next;
  *at = task.next;
  while (task.active) pthread_cond_wait(&pool.done, &pool.mutex);
  pthread_mutex_unlock(&pool.mutex);
}
}  // namespace nb
