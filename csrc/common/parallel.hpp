// A loop over independent jobs, on the caller's number of OpenMP threads (or on one where OpenMP is missing).
#pragma once
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Starting threads costs a few microseconds: worth it from about this many multiply-adds in all.
constexpr int64_t kWorthThreads = 400000;

inline int threads_for(int64_t jobs, int64_t work, int threads) {
#ifdef _OPENMP
  if (work < kWorthThreads || threads < 2 || jobs < 2) return 1;
  return int(jobs < threads ? jobs : threads);
#else
  (void)jobs, (void)work, (void)threads;
  return 1;
#endif
}

// Runs body(job, thread) for every job. The result of a job must not depend on the thread.
template <class Body>
inline void parallel_for(int64_t jobs, int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t job = 0; job < jobs; ++job) body(job, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (int64_t job = 0; job < jobs; ++job) body(job, 0);
}

}  // namespace
