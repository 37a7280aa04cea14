// The trace on CUDA: a warp adds up what its threads saw by shuffles and adds it to the row once.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/trace.h"

namespace brittle {

// Every thread of the warp must call.
__device__ inline void add_warp_trace(int64_t* trace, int64_t row, TraceSums sums) {
  uint64_t parts[kTraceColumns] = {sums.fingerprint, sums.moving, sums.not_finite};
  for (int column = 0; column < kTraceColumns; ++column) {
    unsigned long long sum = parts[column];
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(trace) + row * kTraceColumns + column, sum);
    }
  }
}

namespace {

__global__ void clear_trace_kernel(int64_t* trace, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) trace[i] = 0;
}

}  // namespace

inline void clear_trace_cuda(int64_t* trace, int64_t rows, void* stream) {
  if (rows == 0) return;
  const int64_t count = rows * kTraceColumns;
  launch(clear_trace_kernel, dim3(static_cast<unsigned>((count + 255) / 256)), dim3(256), stream,
         trace, count);
}

}  // namespace brittle
