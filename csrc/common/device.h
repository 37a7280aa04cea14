// Where a kernel runs, and what it needs to be told to run there.
#pragma once

#include <cstdint>

namespace brittle {

#if defined(BRITTLE_CUDA)
inline constexpr bool kCudaBuilt = true;
#else
inline constexpr bool kCudaBuilt = false;
#endif

enum class Device { cpu, cuda };

// A borrowed thread pool: body(begin, end, context) over a split of [0, count), no part smaller
// than `grain` unless it is the only one. Each door lends its own (torch's pool, or plain threads).
using RangeBody = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, int64_t grain, RangeBody body, void* context);

struct Execution {
  Device device = Device::cpu;
  ParallelFor parallel_for = nullptr;  // CPU
  int device_index = 0;                // CUDA
  void* stream = nullptr;              // CUDA: a cudaStream_t
};

template <class Body>
void parallel_for(const Execution& execution, int64_t count, int64_t grain, const Body& body) {
  execution.parallel_for(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace brittle
