// Threads for a door that has no pool to borrow.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/device.h"

namespace brittle {

// BRITTLE_NUM_THREADS, or every core that this process may use.
inline int64_t thread_count() {
  const char* limit = std::getenv("BRITTLE_NUM_THREADS");
  if (limit != nullptr && *limit != '\0') {
    char* end = nullptr;
    errno = 0;
    const long long count = std::strtoll(limit, &end, 10);
    if (*end != '\0' || errno != 0 || count < 1) {
      fail("BRITTLE_NUM_THREADS", "expected a whole number >= 1; got ", limit);
    }
    return count;
  }
  cpu_set_t set;
  const int cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  return cores > 0 ? cores : 1;
}

// A ParallelFor that starts its threads and ends them: that costs tens of microseconds each, so
// only where the work takes longer. What no thread could be had for is done by the caller. What a
// part throws reaches the caller once every part is done, the first one's where several threw.
inline void plain_threads(int64_t count, int64_t grain, RangeBody body, void* context) {
  constexpr int64_t kWorthAThread = 8;  // grains
  const int64_t parts =
      std::max<int64_t>(1, std::min(thread_count(), count / (grain * kWorthAThread)));
  if (parts == 1) return body(0, count, context);
  std::vector<std::exception_ptr> thrown(parts);
  const auto run = [&](int64_t part) {
    try {
      body(count * part / parts, count * (part + 1) / parts, context);
    } catch (...) {
      thrown[part] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(parts - 1);
  int64_t started = 1;
  try {
    for (; started < parts; ++started) threads.emplace_back(run, started);
  } catch (const std::exception&) {  // no room for another stack, or for what keeps track of it
  }
  run(0);
  for (int64_t part = started; part < parts; ++part) run(part);
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& one : thrown) {
    if (one) std::rethrow_exception(one);
  }
}

}  // namespace brittle
