// The steps that need a norm of each row, on the CPU.
//
// DESIGN. Threads share out the rows. A row is read twice, once for its sums and once for its step:
// 28 bytes per float32 element of l2_step_ and of momentum_step_ (24 with signs or a given norm,
// which need no sums), of which the second reading finds what the caches held
// (the three operands of a 3 x 224 x 224 image are 1.8 MB). Both loops run in vectors, the sums in
// 1024 lanes that stay in the first-level cache. Strided operands go through small tiles on the
// stack, so the formulas only ever see unit stride.

#include <algorithm>

#include "common/walk.h"
#include "gradient_step/row_step.h"

namespace brittle {
namespace {

constexpr int64_t kTile = 1024;    // elements
constexpr int64_t kGrain = 16384;  // elements a thread must have to be worth waking

int64_t row_grain(int64_t elements) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements));
}

template <class T, L2Projection projection>
struct L2Tile {
  // No __restrict: adv may be clean itself (a single step taken in place).
  BRITTLE_INLINE static void run(T* adv, const T* grad, const T* clean, int64_t count,
                                 L2Numbers<typename Real<T>::Compute> numbers) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      adv[i] = l2_step_element<T, projection>(adv[i], grad[i], clean[i], numbers);
    }
  }
};

template <class T, L2Projection projection>
void l2_step_typed(const L2Step& op, const Execution& execution) {
  T* const adv = static_cast<T*>(op.adv);
  const T* const grad = static_cast<const T*>(op.grad);
  const T* const clean = static_cast<const T*>(op.clean);
  const Places<T, 3> operands{{adv, grad, clean}};
  const simd::Level level = simd::in_use();
  const int64_t elements = op.layout.row_elements;
  parallel_for(execution, op.layout.rows, row_grain(elements), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sums[3];
      L2Scale scale;
      row_sums<L2Terms<T>>(level, op.layout, row, operands, scale, sums);
      scale.shift = l2_shift<T>(sums[0]);
      if (scale.shift != 0) row_sums<L2Terms<T>>(level, op.layout, row, operands, scale, sums);
      auto plan = l2_plan<T>(op, row, sums, scale);
      if (plan.measure) {
        double squared[1];
        row_sums<L2MovedTerms<T, projection>>(level, op.layout, row, operands, plan.numbers,
                                              squared);
        plan.numbers.factor =
            l2_factor<typename Real<T>::Compute>(std::sqrt(squared[0]), plan.limit);
      }
      TraceSums trace;
      for_each_span(op.layout, row * elements, (row + 1) * elements, [&](const Span<3>& span) {
        T tiles[3][kTile];
        for (int64_t done = 0; done < span.count; done += kTile) {
          const int64_t count = std::min(kTile, span.count - done);
          T* const target = adv + span.offset[0] + done * span.stride[0];
          const T* const at = gathered<T>(target, span.stride[0], count, tiles[0]);
          const T* const gt = gathered(grad + span.offset[1] + done * span.stride[1],
                                       span.stride[1], count, tiles[1]);
          const T* const ct = gathered(clean + span.offset[2] + done * span.stride[2],
                                       span.stride[2], count, tiles[2]);
          if (op.trace != nullptr) simd::call<TraceGradientTile<T>>(level, gt, count, &trace);
          simd::call<L2Tile<T, projection>>(level, const_cast<T*>(at), gt, ct, count, plan.numbers);
          if (at == tiles[0]) scatter(at, count, target, span.stride[0]);
          if (op.trace != nullptr) {
            simd::call<TracePointTile<T>>(level, at, span.first + done, count, &trace);
          }
        }
      });
      if (op.trace != nullptr) add_trace(op.trace, row, trace);
    }
  });
}

template <class T, Projection projection>
struct MomentumTile {
  // No __restrict on adv: it may be clean itself.
  BRITTLE_INLINE static void run(T* adv, const T* grad, T* momentum, const T* clean, int64_t count,
                                 MomentumNumbers<typename Real<T>::Compute> numbers) {
    // Tested once, not in the loop: a division costs more than all else there.
    numbers.signs ? loop<true>(adv, grad, momentum, clean, count, numbers)
                  : loop<false>(adv, grad, momentum, clean, count, numbers);
  }

 private:
  template <bool signs>
  BRITTLE_INLINE static void loop(T* adv, const T* grad, T* momentum, const T* clean, int64_t count,
                                  MomentumNumbers<typename Real<T>::Compute> numbers) {
    numbers.signs = signs;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const T direction = momentum_element(grad[i], momentum[i], numbers);
      momentum[i] = direction;
      adv[i] = linf_step_element<T, projection>(adv[i], direction, clean[i], numbers.step);
    }
  }
};

template <class T, Projection projection>
void momentum_step_typed(const MomentumStep& op, const Execution& execution) {
  T* const adv = static_cast<T*>(op.adv);
  const T* const grad = static_cast<const T*>(op.grad);
  T* const momentum = static_cast<T*>(op.momentum);
  const T* const clean = static_cast<const T*>(op.clean);
  const Places<T, 4> operands{{adv, grad, momentum, clean}};
  const simd::Level level = simd::in_use();
  const int64_t elements = op.layout.row_elements;
  parallel_for(execution, op.layout.rows, row_grain(elements), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum[1] = {0.0};
      if (needs_norm(op)) {
        row_sums<MagnitudeTerms<T>>(level, op.layout, row, operands, NoNumbers{}, sum);
      }
      const auto numbers = momentum_numbers<T, projection>(op, row, sum[0]);
      TraceSums trace;
      for_each_span(op.layout, row * elements, (row + 1) * elements, [&](const Span<4>& span) {
        T tiles[4][kTile];
        for (int64_t done = 0; done < span.count; done += kTile) {
          const int64_t count = std::min(kTile, span.count - done);
          T* const target = adv + span.offset[0] + done * span.stride[0];
          T* const kept = momentum + span.offset[2] + done * span.stride[2];
          const T* const at = gathered<T>(target, span.stride[0], count, tiles[0]);
          const T* const gt = gathered(grad + span.offset[1] + done * span.stride[1],
                                       span.stride[1], count, tiles[1]);
          const T* const mt = gathered<T>(kept, span.stride[2], count, tiles[2]);
          const T* const ct = gathered(clean + span.offset[3] + done * span.stride[3],
                                       span.stride[3], count, tiles[3]);
          if (op.trace != nullptr) simd::call<TraceGradientTile<T>>(level, gt, count, &trace);
          simd::call<MomentumTile<T, projection>>(level, const_cast<T*>(at), gt, const_cast<T*>(mt),
                                                  ct, count, numbers);
          if (at == tiles[0]) scatter(at, count, target, span.stride[0]);
          if (mt == tiles[2]) scatter(mt, count, kept, span.stride[2]);
          if (op.trace != nullptr) {
            simd::call<TracePointTile<T>>(level, at, span.first + done, count, &trace);
          }
        }
      });
      if (op.trace != nullptr) add_trace(op.trace, row, trace);
    }
  });
}

}  // namespace

void l2_step_cpu(const L2Step& op, const Execution& execution) {
  if (op.trace != nullptr) clear_trace(op.trace, op.layout.rows);
  visit_l2_step(op, [&](auto zero, auto projection) {
    l2_step_typed<decltype(zero), decltype(projection)::value>(op, execution);
  });
}

void momentum_step_cpu(const MomentumStep& op, const Execution& execution) {
  if (op.trace != nullptr) clear_trace(op.trace, op.layout.rows);
  visit_momentum_step(op, [&](auto zero, auto projection) {
    momentum_step_typed<decltype(zero), decltype(projection)::value>(op, execution);
  });
}

}  // namespace brittle
