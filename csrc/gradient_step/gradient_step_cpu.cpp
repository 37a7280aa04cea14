// gradient_step on the CPU.
//
// DESIGN. All three operators are bound by memory: linf_step_ moves 16 bytes per float32 element
// (reads adv, grad and clean, writes adv), sign_sweep 8 + 4K, linf_start 8. So the walk is one
// plain pass: the compiler vectorises the element formula for each instruction-set level, the
// hardware prefetcher follows the streams (software prefetch and tiling measured slower), and
// threads split the elements evenly. Results that nobody reads soon and that exceed the cache are
// written around it. Strided operands go through small tiles on the stack, so the formula only ever
// sees unit stride.

#include <type_traits>

#include "common/philox_cpu.h"
#include "common/trace.h"
#include "common/walk.h"
#include "gradient_step/gradient_step.h"

namespace brittle {
namespace {

constexpr int64_t kTile = 1024;    // elements; three float64 tiles fill a 32 KB L1 less a quarter
constexpr int64_t kGrain = 32768;  // elements a thread must have to be worth waking

template <class T, Projection projection>
struct StepTile {
  // No __restrict: adv may be clean itself (a single step taken in place). Equal indices alone may
  // meet.
  BRITTLE_INLINE static void run(T* adv, const T* grad, const T* clean, int64_t count,
                                 LinfNumbers<typename Real<T>::Compute> numbers) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      adv[i] = linf_step_element<T, projection>(adv[i], grad[i], clean[i], numbers);
    }
  }
};

template <class T>
struct SweepTile {
  BRITTLE_INLINE static void run(const T* __restrict x, const T* __restrict grad, T* __restrict out,
                                 int64_t count, LinfNumbers<typename Real<T>::Compute> numbers) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = linf_step_element<T, Projection::exact>(x[i], grad[i], x[i], numbers);
    }
  }
};

// tile.word[k][b] -> words[4 b + k]
struct WordsTile {
  BRITTLE_INLINE static void run(const PhiloxTile* tile, int blocks, uint32_t* __restrict words) {
    for (int b = 0; b < blocks; ++b) {
      for (int k = 0; k < 4; ++k) words[4 * b + k] = tile->word[k][b];
    }
  }
};

template <class T>
struct StartTile {
  BRITTLE_INLINE static void run(const T* __restrict clean, const uint32_t* __restrict words,
                                 T* __restrict out, int64_t count,
                                 LinfNumbers<typename Real<T>::Compute> numbers) {
    for (int64_t i = 0; i < count; ++i) {
      out[i] = linf_start_element<T>(clean[i], words[i], numbers);
    }
  }
};

template <class T, Projection projection, bool traced>
void linf_step_typed(const LinfStep& op, const Execution& execution) {
  T* const adv = static_cast<T*>(op.adv);
  const T* const grad = static_cast<const T*>(op.grad);
  const T* const clean = static_cast<const T*>(op.clean);
  const simd::Level level = simd::in_use();
  parallel_for(
      execution, op.layout.rows * op.layout.row_elements, kGrain, [&](int64_t begin, int64_t end) {
        for_each_span(op.layout, begin, end, [&](const Span<3>& span) {
          const auto numbers = linf_numbers<T, projection>(op.step_size.at(span.row),
                                                           op.eps.at(span.row), op.lo, op.hi);
          T* const a = adv + span.offset[0];
          const T* const g = grad + span.offset[1];
          const T* const c = clean + span.offset[2];
          if constexpr (!traced) {
            if (span.count == 1 ||
                (span.stride[0] == 1 && span.stride[1] == 1 && span.stride[2] == 1)) {
              simd::call<StepTile<T, projection>>(level, a, g, c, span.count, numbers);
              return;
            }
          }
          [[maybe_unused]] TraceSums sums;
          T tiles[3][kTile];
          for (int64_t done = 0; done < span.count; done += kTile) {
            const int64_t count = std::min(kTile, span.count - done);
            T* const target = a + done * span.stride[0];
            const T* const at = gathered<T>(target, span.stride[0], count, tiles[0]);
            const T* const gt =
                gathered(g + done * span.stride[1], span.stride[1], count, tiles[1]);
            const T* const ct =
                gathered(c + done * span.stride[2], span.stride[2], count, tiles[2]);
            if constexpr (traced) simd::call<TraceGradientTile<T>>(level, gt, count, &sums);
            simd::call<StepTile<T, projection>>(level, const_cast<T*>(at), gt, ct, count, numbers);
            if (at == tiles[0]) scatter(at, count, target, span.stride[0]);
            if constexpr (traced) {
              simd::call<TracePointTile<T>>(level, at, span.first + done, count, &sums);
            }
          }
          if constexpr (traced) add_trace(op.trace, span.row, sums);
        });
      });
}

}  // namespace

void linf_step_cpu(const LinfStep& op, const Execution& execution) {
  if (op.trace != nullptr) clear_trace(op.trace, op.layout.rows);
  visit_linf_step(op, [&](auto zero, auto projection, auto traced) {
    linf_step_typed<decltype(zero), decltype(projection)::value, decltype(traced)::value>(
        op, execution);
  });
}

void sign_sweep_cpu(const SignSweep& op, const Execution& execution) {
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const x = static_cast<const T*>(op.x);
    const T* const grad = static_cast<const T*>(op.grad);
    T* const out = static_cast<T*>(op.out);
    const int64_t elements = op.layout.row_elements;
    const bool past_cache = elements * op.count * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    const simd::Level level = simd::in_use();
    parallel_for(execution, elements, kGrain / 4, [&](int64_t begin, int64_t end) {
      for_each_span(op.layout, begin, end, [&](const Span<3>& span) {
        alignas(64) T tiles[3][kTile];
        for (int64_t done = 0; done < span.count; done += kTile) {
          const int64_t count = std::min(kTile, span.count - done);
          const T* const xt =
              gathered(x + span.offset[0] + done * span.stride[0], span.stride[0], count, tiles[0]);
          const T* const gt = gathered(grad + span.offset[1] + done * span.stride[1],
                                       span.stride[1], count, tiles[1]);
          const int64_t stride = span.stride[2];
          T* target = out + span.offset[2] + done * stride;
          for (int64_t k = 0; k < op.count; ++k, target += op.out_stride) {
            const auto numbers = sweep_numbers<T>(op, k);
            const bool direct = (stride == 1 || count == 1) && !past_cache;
            T* const computed = direct ? target : tiles[2];
            simd::call<SweepTile<T>>(level, xt, gt, computed, count, numbers);
            if (direct) continue;
            if (stride == 1 || count == 1) {
              stream(computed, count, target);
            } else {
              scatter(computed, count, target, stride);
            }
          }
        }
      });
      finish_streaming();
    });
  });
}

void linf_start_cpu(const LinfStart& op, const Execution& execution) {
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const clean = static_cast<const T*>(op.clean);
    T* const out = static_cast<T*>(op.out);
    const simd::Level level = simd::in_use();
    const int64_t elements = op.layout.rows * op.layout.row_elements;
    parallel_for(execution, elements, kGrain / 4, [&](int64_t begin, int64_t end) {
      for_each_span(op.layout, begin, end, [&](const Span<2>& span) {
        const double eps = op.eps.at(span.row);
        const auto numbers = linf_numbers<T, Projection::exact>(eps, eps, op.lo, op.hi);
        const int64_t id = op.sample_ids ? op.sample_ids[span.row] : span.row;
        constexpr int64_t kElements = 4 * PhiloxTile::kBlocks;
        PhiloxTile random;
        alignas(64) uint32_t words[kElements];
        T tiles[2][kElements];
        for (int64_t done = 0; done < span.count;) {
          const int64_t first = span.first + done;
          const int64_t lead = first % 4;
          const int64_t count = std::min(kElements - lead, span.count - done);
          const int blocks = static_cast<int>((lead + count + 3) / 4);
          fill_philox(level, random, static_cast<uint32_t>(first / 4), blocks, op.seed, id,
                      op.draw);
          simd::call<WordsTile>(level, static_cast<const PhiloxTile*>(&random), blocks,
                                static_cast<uint32_t*>(words));
          const T* const ct = gathered(clean + span.offset[0] + done * span.stride[0],
                                       span.stride[0], count, tiles[0]);
          T* const target = out + span.offset[1] + done * span.stride[1];
          const bool direct = span.stride[1] == 1 || count == 1;
          T* const computed = direct ? target : tiles[1];
          simd::call<StartTile<T>>(level, ct, words + lead, computed, count, numbers);
          if (!direct) scatter(computed, count, target, span.stride[1]);
          done += count;
        }
      });
    });
  });
}

}  // namespace brittle
