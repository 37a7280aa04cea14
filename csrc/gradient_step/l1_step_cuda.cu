// l1_step_ on CUDA.
//
// DESIGN. One block a row, as the sums are one block's. A row of at most BlockRow's kept elements
// is read once and stays in registers until it is written: 16 bytes per float32 element. A longer
// row is read again by every pass of the searches, from the second-level cache where it fits there;
// so a pass of the selection counts for seven pivots, which leaves eleven passes for float32 at
// most; each pass, and each of the root's, reads 12 bytes an element. Selection counts integers, in
// any order; the root's sums keep the order of row_sum.h, so the bits are the CPU's.

#include "common/launch.cuh"
#include "common/row_sum.cuh"
#include "common/trace.cuh"
#include "gradient_step/l1_step.h"

namespace brittle {
namespace {

constexpr int kBlocksPerMultiprocessor = 16;

// Every thread of the block gets the sums of all threads' numbers. Every thread must call.
template <int sums>
__device__ void add_block_counts(const int (&count)[sums], int64_t (&total)[sums]) {
  constexpr int kWarps = kSumThreads / 32;
  __shared__ long long of_warp[sums][kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();  // the last call's numbers have been read
  for (int s = 0; s < sums; ++s) {
    long long sum = count[s];
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (threadIdx.x % 32 == 0) of_warp[s][warp] = sum;
  }
  __syncthreads();
  for (int s = 0; s < sums; ++s) {
    long long sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of_warp[s][w];
    total[s] = sum;
  }
}

template <class T>
struct KeptTerms {
  static constexpr int kSums = 2;
  BRITTLE_HD static void of(const L1Numbers<T>& numbers, T adv, T grad, T clean,
                            double (&term)[kSums]) {
    const L1Way<T> way = l1_way(adv, grad, clean, numbers);
    const L1Kept kept = l1_kept(way.length, way.room, numbers.shrink);
    term[0] = kept.length;
    term[1] = bit_cast<double>(word_of(1.0) & kept.gives);
  }
};

template <int pivots, class T, bool kept>
__device__ void count_reached(BlockRow<T, 3, kept>& elements, int64_t row_elements,
                              const L1Numbers<T>& numbers,
                              const typename Real<T>::Word (&pivot)[pivots],
                              int64_t (&reached)[pivots]) {
  int count[pivots] = {};
  elements.for_each([&](int64_t i, const Quad<T>(&quad)[3]) {
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      const bool inside = i + l < row_elements;
      const T free = l1_free(quad[0].lane[l], quad[1].lane[l], numbers.lo, numbers.hi);
#pragma unroll
      for (int p = 0; p < pivots; ++p) count[p] += inside && l1_moves(free, pivot[p]);
    }
  });
  add_block_counts(count, reached);
}

template <class T, bool kept>
__global__ void __launch_bounds__(kSumThreads, 2)
    l1_step_kernel(const __grid_constant__ L1Step op, bool quads) {
  using Compute = typename Real<T>::Compute;
  using Word = typename Real<T>::Word;
  constexpr int kPivots = kept ? 1 : 7;
  const int64_t count = op.layout.row_elements;
  const Places<T, 3> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                               static_cast<const T*>(op.clean)}};
  for (int64_t row = blockIdx.x; row < op.layout.rows; row += gridDim.x) {
    BlockRow<T, 3, kept> elements(op.layout, row_places(op.layout, row, operands), quads);
    const double step_size = op.step_size.at(row);
    const double eps = op.eps.at(row);
    auto numbers = l1_numbers<T>(1, 0, 0.0, op.lo, op.hi);
    if (step_size > 0.0) {
      const Word first[1] = {1};
      int64_t movable[1];
      count_reached(elements, count, numbers, first, movable);
      L1Selection<T, kPivots> selection(movable[0], op.k.at(row), Real<T>::kLargest);
      while (!selection.found()) {
        Word pivot[kPivots];
        int64_t reached[kPivots];
        for (int p = 0; p < kPivots; ++p) pivot[p] = selection.pivot(p);
        count_reached(elements, count, numbers, pivot, reached);
        selection.narrow(pivot, reached);
      }
      numbers = l1_numbers<T>(selection.lo, selection.count, step_size, op.lo, op.hi);
    }
    if (eps <= std::numeric_limits<double>::max()) {
      double sums[2];
      elements.template sums<KeptTerms<T>>(numbers, sums);
      L1Shrink<Compute> search(sums[0], l1_radius<Compute>(eps));
      while (!search.found) {
        search.narrow(sums[0], sums[1]);
        numbers.shrink = search.at;
        if (!search.found) elements.template sums<KeptTerms<T>>(numbers, sums);
      }
      numbers.shrink = search.at;
    }
    T* const adv = static_cast<T*>(op.adv) + row * op.layout.row_stride[0];
    TraceSums trace;
    elements.for_each([&](int64_t i, const Quad<T>(&quad)[3]) {
      Quad<T> result;
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const T was = quad[0].lane[l], grad = quad[1].lane[l], clean = quad[2].lane[l];
        result.lane[l] = numbers.shrink == 0.0 ? l1_step_element<false>(was, grad, clean, numbers)
                                               : l1_step_element<true>(was, grad, clean, numbers);
        if (op.trace != nullptr && i + l < count) trace_element(result.lane[l], grad, i + l, trace);
      }
      store_quad(op.layout, 0, adv, i, quads, result);
    });
    if (op.trace != nullptr) add_warp_trace(op.trace, row, trace);
  }
}

}  // namespace

void l1_step_cuda(const L1Step& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  if (op.trace != nullptr) clear_trace_cuda(op.trace, op.layout.rows, execution.stream);
  const int64_t most = int64_t{kBlocksPerMultiprocessor} * multiprocessors(execution.device_index);
  const dim3 grid(static_cast<unsigned>(std::min(op.layout.rows, most)));
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Places<T, 3> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                                 static_cast<const T*>(op.clean)}};
    const bool kept = op.layout.row_elements <= BlockRow<T, 3, true>::kElements;
    launch(kept ? l1_step_kernel<T, true> : l1_step_kernel<T, false>, grid, dim3(kSumThreads),
           execution.stream, op, takes_quads(op.layout, operands));
  });
}

}  // namespace brittle
