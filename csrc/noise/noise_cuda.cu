// noise on CUDA.
//
// DESIGN. 8 bytes a float32 element (12 backward) and, for Gaussian numbers, some 60 operations: on
// the edge between memory and arithmetic. One thread makes one Philox block, four neighbouring
// elements of a sample; where rows are dense and start on a pack's boundary it loads and stores
// them as one pack (16 bytes for float32). The grid strides, so that the seed's key schedule is
// paid once a thread.

#include "common/grid.h"
#include "common/launch.cuh"
#include "noise/noise.h"

namespace brittle {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 16;

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T lane[4];
};

template <class T, Noise kind, bool backward>
BRITTLE_HD T result_of(T grad, T x, uint32_t draw,
                       const NoiseNumbers<typename Real<T>::Compute>& numbers) {
  if constexpr (backward) {
    return noise_gradient<kind>(grad, x, draw, numbers);
  } else {
    return noise_element<kind>(x, draw, numbers);
  }
}

template <class T, Noise kind, bool backward>
__global__ void __launch_bounds__(kThreads) noise_kernel(NoiseOp op, bool packs) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t count = op.layout.row_elements;
  const int64_t blocks = (count + 3) / 4;
  for (int64_t row = blockIdx.y; row < op.layout.rows; row += gridDim.y) {
    const auto numbers = noise_numbers<T>(kind, op.scale.at(row), op.lo, op.hi);
    const int64_t id = op.sample_ids ? op.sample_ids[row] : row;
    const T* const grad =
        backward ? static_cast<const T*>(op.grad) + row * op.layout.row_stride[0] : nullptr;
    const T* const x = static_cast<const T*>(op.x) + row * op.layout.row_stride[1];
    T* const out = static_cast<T*>(op.out) + row * op.layout.row_stride[2];
    for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < blocks;
         b += threads) {
      const Philox4 draws =
          block_draws<kind>(philox_block(op.seed, id, op.draw, static_cast<uint32_t>(b)));
      if (packs && 4 * b + 4 <= count) {
        Quad<T> xs = *reinterpret_cast<const Quad<T>*>(x + 4 * b);
        Quad<T> gs = xs;
        if constexpr (backward) gs = *reinterpret_cast<const Quad<T>*>(grad + 4 * b);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          xs.lane[w] = result_of<T, kind, backward>(gs.lane[w], xs.lane[w], draws.word[w], numbers);
        }
        *reinterpret_cast<Quad<T>*>(out + 4 * b) = xs;
        continue;
      }
#pragma unroll 1  // the index arithmetic four times over would be most of the code
      for (int w = 0; w < 4; ++w) {
        const int64_t i = 4 * b + w;
        if (i >= count) continue;
        const T value = x[op.layout.offset(1, i)];
        T gradient = value;
        if constexpr (backward) gradient = grad[op.layout.offset(0, i)];
        out[op.layout.offset(2, i)] =
            result_of<T, kind, backward>(gradient, value, draws.word[w], numbers);
      }
    }
  }
}

// Whether every row of every operand is dense and starts on a boundary of a pack of four.
template <class T>
bool takes_packs(const NoiseOp& op) {
  if (!op.layout.dense()) return false;
  const void* starts[3] = {op.grad == nullptr ? op.x : op.grad, op.x, op.out};
  for (int o = 0; o < 3; ++o) {
    if (reinterpret_cast<uintptr_t>(starts[o]) % sizeof(Quad<T>) != 0) return false;
    if (op.layout.rows > 1 && op.layout.row_stride[o] % 4 != 0) return false;
  }
  return true;
}

template <class T, Noise kind>
void noise_typed(const NoiseOp& op, const Execution& execution) {
  const Grid grid = grid_for(op.layout.rows, (op.layout.row_elements + 3) / 4, kThreads,
                             kBlocksPerMultiprocessor * multiprocessors(execution.device_index));
  launch(op.grad == nullptr ? noise_kernel<T, kind, false> : noise_kernel<T, kind, true>,
         dim3(grid.x, grid.y), dim3(kThreads), execution.stream, op, takes_packs<T>(op));
}

constexpr int kBallThreads = 256;
constexpr int kBallGroups = kBallThreads / kBallLanes;  // tiles summed at a time

// One block a row. Sixteen threads sum a tile, each its lane of it, so that the order is the CPU's;
// a lane makes its number's whole Philox block and takes one number of four, which is cheap beside
// the model that the start is for.
template <class T, int norm>
__global__ void __launch_bounds__(kBallThreads) in_ball_kernel(BallOp op) {
  constexpr Noise kNumbers = ball_numbers<norm>();
  __shared__ double sums[kBallGroups];
  const int64_t count = op.layout.row_elements;
  const int64_t tiles = (count + kBallTile - 1) / kBallTile;
  const int group = static_cast<int>(threadIdx.x) / kBallLanes;
  const int lane = static_cast<int>(threadIdx.x) % kBallLanes;
  for (int64_t row = blockIdx.x; row < op.layout.rows; row += gridDim.x) {
    const int64_t id = op.sample_ids ? op.sample_ids[row] : row;
    double total = 0.0;
    for (int64_t base = 0; base < tiles; base += kBallGroups) {
      double sum = 0.0;
      const int64_t first = (base + group) * kBallTile + lane;
      for (int j = 0; j < kBallTile / kBallLanes; ++j) {
        const int64_t i = first + j * kBallLanes;
        if (i >= count) break;
        const Philox4 draws =
            block_draws<kNumbers>(philox_block(op.seed, id, op.draw, static_cast<uint32_t>(i / 4)));
        const uint32_t low = (i & 1) ? draws.word[1] : draws.word[0];
        const uint32_t high = (i & 1) ? draws.word[3] : draws.word[2];
        sum += ball_term<norm>(bit_cast<float>((i & 2) ? high : low));
      }
      for (int half = kBallLanes / 2; half > 0; half /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, half);
      }
      if (lane == 0) sums[group] = sum;
      __syncthreads();
      for (int g = 0; g < kBallGroups && base + g < tiles; ++g) total += sums[g];
      __syncthreads();
    }
    const double factor =
        ball_factor<norm>(total, op.eps.at(row), op.surface, count, op.seed, id, op.draw);
    const auto numbers = noise_numbers<T>(kNumbers, factor, op.lo, op.hi);
    const T* const x = static_cast<const T*>(op.x) + row * op.layout.row_stride[0];
    T* const out = static_cast<T*>(op.out) + row * op.layout.row_stride[1];
    for (int64_t b = threadIdx.x; b < (count + 3) / 4; b += blockDim.x) {
      const Philox4 draws =
          block_draws<kNumbers>(philox_block(op.seed, id, op.draw, static_cast<uint32_t>(b)));
#pragma unroll 1
      for (int w = 0; w < 4; ++w) {
        const int64_t i = 4 * b + w;
        if (i >= count) continue;
        out[op.layout.offset(1, i)] =
            noise_element<kNumbers>(x[op.layout.offset(0, i)], draws.word[w], numbers);
      }
    }
  }
}

template <class T>
void in_ball_typed(const BallOp& op, const Execution& execution) {
  const int64_t blocks = std::min<int64_t>(
      op.layout.rows, int64_t{kBlocksPerMultiprocessor} * multiprocessors(execution.device_index));
  launch(op.norm == 2 ? in_ball_kernel<T, 2> : in_ball_kernel<T, 1>,
         dim3(static_cast<unsigned>(blocks)), dim3(kBallThreads), execution.stream, op);
}

}  // namespace

void noise_cuda(const NoiseOp& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  visit_dtype(op.dtype, [&](auto zero) {
    visit_noise(op.kind, [&](auto kind) {
      noise_typed<decltype(zero), decltype(kind)::value>(op, execution);
    });
  });
}

void in_ball_cuda(const BallOp& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  visit_dtype(op.dtype, [&](auto zero) { in_ball_typed<decltype(zero)>(op, execution); });
}

}  // namespace brittle
