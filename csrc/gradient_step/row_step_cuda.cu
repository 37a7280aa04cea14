// The steps that need a norm of each row, on CUDA.
//
// DESIGN. Bound by memory. One block a row, in quads of four neighbouring elements (16 bytes of
// float32 at a time). A row of at most BlockRow's kept elements is read once and waits in registers
// between its sums and its step: 16 bytes per float32 element of l2_step_, 24 of momentum_step_;
// longer rows are read again: 28 of either, where the cache does not help. The grid strides over
// the rows.

#include "common/launch.cuh"
#include "common/row_sum.cuh"
#include "common/trace.cuh"
#include "gradient_step/row_step.h"

namespace brittle {
namespace {

constexpr int kBlocksPerMultiprocessor = 8;

template <class T, L2Projection projection, bool kept>
__global__ void __launch_bounds__(kSumThreads, 2)
    l2_step_kernel(const __grid_constant__ L2Step op, bool quads) {
  using Compute = typename Real<T>::Compute;
  const Places<T, 3> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                               static_cast<const T*>(op.clean)}};
  for (int64_t row = blockIdx.x; row < op.layout.rows; row += gridDim.x) {
    BlockRow<T, 3, kept> elements(op.layout, row_places(op.layout, row, operands), quads);
    double sums[3];
    L2Scale scale;
    elements.template sums<L2Terms<T>>(scale, sums);
    scale.shift = l2_shift<T>(sums[0]);
    if (scale.shift != 0) elements.template sums<L2Terms<T>>(scale, sums);
    auto plan = l2_plan<T>(op, row, sums, scale);
    if (plan.measure) {
      double squared[1];
      elements.template sums<L2MovedTerms<T, projection>>(plan.numbers, squared);
      plan.numbers.factor = l2_factor<Compute>(std::sqrt(squared[0]), plan.limit);
    }
    T* const adv = static_cast<T*>(op.adv) + row * op.layout.row_stride[0];
    TraceSums trace;
    elements.for_each([&](int64_t i, Quad<T>(&quad)[3]) {
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        quad[0].lane[l] = l2_step_element<T, projection>(quad[0].lane[l], quad[1].lane[l],
                                                         quad[2].lane[l], plan.numbers);
        if (op.trace != nullptr && i + l < op.layout.row_elements) {
          trace_element(quad[0].lane[l], quad[1].lane[l], i + l, trace);
        }
      }
      store_quad(op.layout, 0, adv, i, quads, quad[0]);
    });
    if (op.trace != nullptr) add_warp_trace(op.trace, row, trace);
  }
}

template <class T, Projection projection, bool kept>
__global__ void __launch_bounds__(kSumThreads, 2)
    momentum_step_kernel(const __grid_constant__ MomentumStep op, bool quads) {
  const Places<T, 4> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                               static_cast<const T*>(op.momentum),
                               static_cast<const T*>(op.clean)}};
  for (int64_t row = blockIdx.x; row < op.layout.rows; row += gridDim.x) {
    BlockRow<T, 4, kept> elements(op.layout, row_places(op.layout, row, operands), quads);
    double sum[1] = {0.0};
    if (needs_norm(op)) {
      elements.template sums<MagnitudeTerms<T>>(NoNumbers{}, sum);
    }
    const auto numbers = momentum_numbers<T, projection>(op, row, sum[0]);
    T* const adv = static_cast<T*>(op.adv) + row * op.layout.row_stride[0];
    T* const momentum = static_cast<T*>(op.momentum) + row * op.layout.row_stride[2];
    TraceSums trace;
    elements.for_each([&](int64_t i, Quad<T>(&quad)[4]) {
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        const T direction = momentum_element(quad[1].lane[l], quad[2].lane[l], numbers);
        quad[2].lane[l] = direction;
        quad[0].lane[l] = linf_step_element<T, projection>(quad[0].lane[l], direction,
                                                           quad[3].lane[l], numbers.step);
        if (op.trace != nullptr && i + l < op.layout.row_elements) {
          trace_element(quad[0].lane[l], quad[1].lane[l], i + l, trace);
        }
      }
      store_quad(op.layout, 0, adv, i, quads, quad[0]);
      store_quad(op.layout, 2, momentum, i, quads, quad[2]);
    });
    if (op.trace != nullptr) add_warp_trace(op.trace, row, trace);
  }
}

dim3 rows_grid(int64_t rows, int device) {
  const int64_t blocks =
      std::min<int64_t>(rows, int64_t{kBlocksPerMultiprocessor} * multiprocessors(device));
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace

void l2_step_cuda(const L2Step& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  if (op.trace != nullptr) clear_trace_cuda(op.trace, op.layout.rows, execution.stream);
  visit_l2_step(op, [&](auto zero, auto projection) {
    using T = decltype(zero);
    constexpr L2Projection kProjection = decltype(projection)::value;
    const Places<T, 3> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                                 static_cast<const T*>(op.clean)}};
    const bool quads = takes_quads(op.layout, operands);
    auto* kernel = l2_step_kernel<T, kProjection, false>;
    if constexpr (kProjection == L2Projection::exact) {  // the others need not be as fast
      const bool kept = quads && op.layout.row_elements <= BlockRow<T, 3, true>::kElements;
      if (kept) kernel = l2_step_kernel<T, kProjection, true>;
    }
    launch(kernel, rows_grid(op.layout.rows, execution.device_index), dim3(kSumThreads),
           execution.stream, op, quads);
  });
}

void momentum_step_cuda(const MomentumStep& op, const Execution& execution) {
  const CurrentDevice current(execution.device_index);
  if (op.trace != nullptr) clear_trace_cuda(op.trace, op.layout.rows, execution.stream);
  visit_momentum_step(op, [&](auto zero, auto projection) {
    using T = decltype(zero);
    constexpr Projection kProjection = decltype(projection)::value;
    const Places<T, 4> operands{{static_cast<const T*>(op.adv), static_cast<const T*>(op.grad),
                                 static_cast<const T*>(op.momentum),
                                 static_cast<const T*>(op.clean)}};
    const bool quads = takes_quads(op.layout, operands);
    auto* kernel = momentum_step_kernel<T, kProjection, false>;
    if constexpr (kProjection == Projection::exact) {  // the other need not be as fast
      const bool kept =
          quads && needs_norm(op) && op.layout.row_elements <= BlockRow<T, 4, true>::kElements;
      if (kept) kernel = momentum_step_kernel<T, kProjection, true>;
    }
    launch(kernel, rows_grid(op.layout.rows, execution.device_index), dim3(kSumThreads),
           execution.stream, op, quads);
  });
}

}  // namespace brittle
