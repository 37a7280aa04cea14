// gradient_step on CUDA.
//
// DESIGN. Bound by memory, as on the CPU: linf_step_ moves 16 bytes per float32 element, sign_sweep
// 8 + 4K, linf_start 8. Where every operand is dense in the same order, each thread works on packs
// of 16 bytes and has kUnroll independent packs in flight before its first use of one; the grid is
// a few waves and strides on, so that the tail of the last wave is short. A row (blockIdx.y) has
// its own eps and step size; without per-row arguments the whole tensor is one row. Rows whose
// start is not on a 16-byte boundary peel a head; operands whose misalignments differ, and strided
// operands, go element by element through one index computation.

#include "common/grid.h"
#include "common/launch.cuh"
#include "common/trace.cuh"
#include "gradient_step/gradient_step.h"

namespace brittle {
namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 2;
constexpr int kBlocksPerMultiprocessor = 16;
constexpr int kSweepEps = 64;  // epsilons of one launch; 2 KB of kernel parameters in float64

template <class T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T lane[kCount];
};

// How a dense row splits: [0, head) and [tail, count) element by element, packs between.
struct PackRange {
  int64_t head, packs, tail;
};

template <class T>
BRITTLE_HD PackRange pack_range(int64_t count, const void* a, const void* b, const void* c) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16; };
  const uintptr_t offset = misaligned(a);
  if (misaligned(b) != offset || misaligned(c) != offset || offset % sizeof(T) != 0) {
    return {count, 0, count};
  }
  const int64_t lead = offset == 0 ? 0 : static_cast<int64_t>((16 - offset) / sizeof(T));
  const int64_t head = lead < count ? lead : count;
  const int64_t packs = (count - head) / Pack<T>::kCount;
  return {head, packs, head + packs * Pack<T>::kCount};
}

// Calls element(i) for the ends of a dense row and pack(i) for every pack between them, i being the
// row's element index; kUnroll packs are handed over together.
template <class T, class Element, class PackGroup>
__device__ void walk_row(int64_t count, const PackRange& range, const Element& element,
                         const PackGroup& packs) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread; i < range.head; i += threads) element(i);
  for (int64_t i = range.tail + thread; i < count; i += threads) element(i);
  const int64_t block_first = static_cast<int64_t>(blockIdx.x) * blockDim.x * kUnroll + threadIdx.x;
  for (int64_t p = block_first; p < range.packs; p += threads * kUnroll) {
    packs(range.head, p, range.packs);
  }
}

template <class T>
__device__ Pack<T> load(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

template <class T>
__device__ void store(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

template <class T, Projection projection, bool traced>
__global__ void __launch_bounds__(kThreads) linf_step_dense(LinfStep op) {
  for (int64_t row = blockIdx.y; row < op.layout.rows; row += gridDim.y) {
    T* const adv = static_cast<T*>(op.adv) + row * op.layout.row_stride[0];
    const T* const grad = static_cast<const T*>(op.grad) + row * op.layout.row_stride[1];
    const T* const clean = static_cast<const T*>(op.clean) + row * op.layout.row_stride[2];
    const auto numbers =
        linf_numbers<T, projection>(op.step_size.at(row), op.eps.at(row), op.lo, op.hi);
    const int64_t count = op.layout.row_elements;
    [[maybe_unused]] TraceSums sums;
    walk_row<T>(
        count, pack_range<T>(count, adv, grad, clean),
        [&](int64_t i) {
          const T moved = linf_step_element<T, projection>(adv[i], grad[i], clean[i], numbers);
          adv[i] = moved;
          if constexpr (traced) trace_element(moved, grad[i], i, sums);
        },
        [&](int64_t head, int64_t first, int64_t packs) {
          Pack<T> a[kUnroll], g[kUnroll], c[kUnroll];
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const int64_t p = first + static_cast<int64_t>(u) * blockDim.x;
            if (p >= packs) continue;
            const int64_t i = head + p * Pack<T>::kCount;
            a[u] = load(adv + i);
            g[u] = load(grad + i);
            c[u] = load(clean + i);
          }
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const int64_t p = first + static_cast<int64_t>(u) * blockDim.x;
            if (p >= packs) continue;
#pragma unroll
            for (int l = 0; l < Pack<T>::kCount; ++l) {
              a[u].lane[l] = linf_step_element<T, projection>(a[u].lane[l], g[u].lane[l],
                                                              c[u].lane[l], numbers);
              if constexpr (traced) {
                trace_element(a[u].lane[l], g[u].lane[l], head + p * Pack<T>::kCount + l, sums);
              }
            }
            store(adv + head + p * Pack<T>::kCount, a[u]);
          }
        });
    if constexpr (traced) add_warp_trace(op.trace, row, sums);
  }
}

template <class T, Projection projection, bool traced>
__global__ void __launch_bounds__(kThreads) linf_step_strided(LinfStep op) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t row = blockIdx.y; row < op.layout.rows; row += gridDim.y) {
    const auto numbers =
        linf_numbers<T, projection>(op.step_size.at(row), op.eps.at(row), op.lo, op.hi);
    [[maybe_unused]] TraceSums sums;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < op.layout.row_elements; i += threads) {
      T* const adv =
          static_cast<T*>(op.adv) + row * op.layout.row_stride[0] + op.layout.offset(0, i);
      const T grad =
          static_cast<const T*>(op.grad)[row * op.layout.row_stride[1] + op.layout.offset(1, i)];
      const T clean =
          static_cast<const T*>(op.clean)[row * op.layout.row_stride[2] + op.layout.offset(2, i)];
      const T moved = linf_step_element<T, projection>(*adv, grad, clean, numbers);
      *adv = moved;
      if constexpr (traced) trace_element(moved, grad, i, sums);
    }
    if constexpr (traced) add_warp_trace(op.trace, row, sums);
  }
}

template <class Compute>
struct SweepNumbers {
  LinfNumbers<Compute> of[kSweepEps];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    sign_sweep_dense(SignSweep op, SweepNumbers<typename Real<T>::Compute> numbers) {
  const T* const x = static_cast<const T*>(op.x);
  const T* const grad = static_cast<const T*>(op.grad);
  T* const out = static_cast<T*>(op.out);
  const int64_t count = op.layout.row_elements;
  // Every out[k] must start at the same misalignment for packs to be stored.
  const bool aligned = op.out_stride * sizeof(T) % 16 == 0;
  const PackRange range = aligned ? pack_range<T>(count, x, grad, out) : PackRange{count, 0, count};
  walk_row<T>(
      count, range,
      [&](int64_t i) {
        for (int64_t k = 0; k < op.count; ++k) {
          out[k * op.out_stride + i] =
              linf_step_element<T, Projection::exact>(x[i], grad[i], x[i], numbers.of[k]);
        }
      },
      [&](int64_t head, int64_t first, int64_t packs) {
        Pack<T> clean[kUnroll], g[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int64_t p = first + static_cast<int64_t>(u) * blockDim.x;
          if (p >= packs) continue;
          clean[u] = load(x + head + p * Pack<T>::kCount);
          g[u] = load(grad + head + p * Pack<T>::kCount);
        }
        for (int64_t k = 0; k < op.count; ++k) {
#pragma unroll
          for (int u = 0; u < kUnroll; ++u) {
            const int64_t p = first + static_cast<int64_t>(u) * blockDim.x;
            if (p >= packs) continue;
            Pack<T> result;
#pragma unroll
            for (int l = 0; l < Pack<T>::kCount; ++l) {
              result.lane[l] = linf_step_element<T, Projection::exact>(
                  clean[u].lane[l], g[u].lane[l], clean[u].lane[l], numbers.of[k]);
            }
            store(out + k * op.out_stride + head + p * Pack<T>::kCount, result);
          }
        }
      });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sign_sweep_strided(SignSweep op, SweepNumbers<typename Real<T>::Compute> numbers) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < op.layout.row_elements; i += threads) {
    const T x = static_cast<const T*>(op.x)[op.layout.offset(0, i)];
    const T grad = static_cast<const T*>(op.grad)[op.layout.offset(1, i)];
    T* const out = static_cast<T*>(op.out) + op.layout.offset(2, i);
    for (int64_t k = 0; k < op.count; ++k) {
      out[k * op.out_stride] = linf_step_element<T, Projection::exact>(x, grad, x, numbers.of[k]);
    }
  }
}

// One thread a Philox block: four elements of one sample.
template <class T>
__global__ void __launch_bounds__(kThreads) linf_start_kernel(LinfStart op) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t count = op.layout.row_elements;
  const int64_t blocks = (count + 3) / 4;
  for (int64_t row = blockIdx.y; row < op.layout.rows; row += gridDim.y) {
    const double eps = op.eps.at(row);
    const auto numbers = linf_numbers<T, Projection::exact>(eps, eps, op.lo, op.hi);
    const int64_t id = op.sample_ids ? op.sample_ids[row] : row;
    const T* const clean = static_cast<const T*>(op.clean) + row * op.layout.row_stride[0];
    T* const out = static_cast<T*>(op.out) + row * op.layout.row_stride[1];
    for (int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; b < blocks;
         b += threads) {
      const Philox4 random = philox_block(op.seed, id, op.draw, static_cast<uint32_t>(b));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int64_t i = 4 * b + w;
        if (i >= count) continue;
        out[op.layout.offset(1, i)] =
            linf_start_element<T>(clean[op.layout.offset(0, i)], random.word[w], numbers);
      }
    }
  }
}

dim3 grid_of(int64_t rows, int64_t work_per_row, int device) {
  const Grid grid =
      grid_for(rows, work_per_row, kThreads, kBlocksPerMultiprocessor * multiprocessors(device));
  return dim3(grid.x, grid.y);
}

template <class T, Projection projection, bool traced>
void linf_step_typed(const LinfStep& op, const Execution& execution) {
  const bool dense = op.layout.dense();
  const int64_t work =
      dense ? op.layout.row_elements / (Pack<T>::kCount * kUnroll) + 1 : op.layout.row_elements;
  launch(dense ? linf_step_dense<T, projection, traced> : linf_step_strided<T, projection, traced>,
         grid_of(op.layout.rows, work, execution.device_index), dim3(kThreads), execution.stream,
         op);
}

}  // namespace

void linf_step_cuda(const LinfStep& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  if (op.trace != nullptr) clear_trace_cuda(op.trace, op.layout.rows, execution.stream);
  visit_linf_step(op, [&](auto zero, auto projection, auto traced) {
    linf_step_typed<decltype(zero), decltype(projection)::value, decltype(traced)::value>(
        op, execution);
  });
}

void sign_sweep_cuda(const SignSweep& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool dense = op.layout.dense();
    const int64_t work =
        dense ? op.layout.row_elements / (Pack<T>::kCount * kUnroll) + 1 : op.layout.row_elements;
    for (int64_t done = 0; done < op.count; done += kSweepEps) {
      SignSweep part = op;
      SweepNumbers<typename Real<T>::Compute> numbers;
      part.out = static_cast<T*>(op.out) + done * op.out_stride;
      part.count = std::min<int64_t>(kSweepEps, op.count - done);
      for (int64_t k = 0; k < part.count; ++k) {
        numbers.of[k] = sweep_numbers<T>(op, done + k);
      }
      launch(dense ? sign_sweep_dense<T> : sign_sweep_strided<T>,
             grid_of(1, work, execution.device_index), dim3(kThreads), execution.stream, part,
             numbers);
    }
  });
}

void linf_start_cuda(const LinfStart& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(linf_start_kernel<T>,
           grid_of(op.layout.rows, (op.layout.row_elements + 3) / 4, execution.device_index),
           dim3(kThreads), execution.stream, op);
  });
}

}  // namespace brittle
