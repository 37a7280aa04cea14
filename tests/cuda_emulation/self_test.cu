// Kernels that lean on everything the emulation offers, so that the emulation itself is tested: a
// block sum by shuffles and shared memory, and a block that wrongly lets some threads miss a
// barrier.

#include "common/launch.cuh"
#include "self_test.h"

namespace brittle {
namespace {

constexpr unsigned kThreads = 96;  // three warps

__global__ void block_sum(const double* in, int64_t count, double* out) {
  __shared__ double warp_sums[kThreads / 32];
  double sum = 0;
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    sum += in[i];
  }
  for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (double part : warp_sums) total += part;
    out[blockIdx.x] = total;
  }
}

// Lane i ends with the sum of lanes i .. 31 of its warp.
__global__ void suffix_sum(const double* in, double* out) {
  double sum = in[threadIdx.x];
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const double other = __shfl_down_sync(0xffffffffu, sum, delta);
    if (threadIdx.x % 32 + delta < 32) sum += other;
  }
  out[threadIdx.x] = sum + 0 * __shfl_sync(0xffffffffu, sum, 0);
}

// One warp leaves before a barrier that the others wait at.
__global__ void skips_a_barrier(double* out) {
  if (threadIdx.x >= 32) __syncthreads();
  out[threadIdx.x] = threadIdx.x;
}

}  // namespace

void emulated_block_sum(const double* in, int64_t count, double* out, int64_t blocks) {
  launch(block_sum, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), nullptr, in, count, out);
}

void emulated_suffix_sum(const double* in, double* out) {
  launch(suffix_sum, dim3(1), dim3(kThreads), nullptr, in, out);
}

void emulated_skipped_barrier(double* out) {
  launch(skips_a_barrier, dim3(1), dim3(kThreads), nullptr, out);
}

}  // namespace brittle
