// gradient_step: one step of a gradient attack, fused.
//
//   linf_step_   adv <- the point of the Linf ball and of the bounds nearest to adv + step_size
//   sign(grad) sign_sweep   out[k] <- the single such step of length eps[k] from x, for K epsilons
//   in one pass linf_start   out <- a uniform random point of the ball and the bounds
//
// Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR 2015; Madry et al.,
// "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
//
// What holds of every result, given a clean point inside the bounds:
//   |result - clean| <= eps as recomputed in the tensor's dtype, even against the caller's double
//   eps; lo <= result <= hi;  an element whose gradient is zero, NaN or infinite does not move; no
//   NaN from finite input.
// The one exception is Projection::difference, which reproduces the peers' rounding: they clamp the
// difference and add it back, and that can leave the recomputed distance one ulp above eps.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/device.h"
#include "common/host_device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/philox.h"

namespace brittle {

enum class Projection { exact, difference };

// The numbers of one row's step, in the type the arithmetic is done in.
template <class Compute>
struct LinfNumbers {
  Compute step, eps, lo, hi;
};

template <class T, Projection projection>
BRITTLE_HD LinfNumbers<typename Real<T>::Compute> linf_numbers(double step, double eps, double lo,
                                                               double hi) {
  using Compute = typename Real<T>::Compute;
  if constexpr (projection == Projection::exact) {
    return {static_cast<Compute>(step), round_down<T>(eps), round_nearest<T>(lo),
            round_nearest<T>(hi)};
  } else {
    return {round_nearest<T>(step), round_nearest<T>(eps), round_nearest<T>(lo),
            round_nearest<T>(hi)};
  }
}

// step * sign(grad); 0 where the gradient is zero, NaN or infinite. On the stored bits, a number is
// finite and not zero if its magnitude, less one, is below that of the largest: one comparison.
template <class T>
BRITTLE_HD typename Real<T>::Compute sign_step(T grad, typename Real<T>::Compute step) {
  using Compute = typename Real<T>::Compute;
  using Word = typename Real<T>::Word;
  constexpr Word kSign = Word(1) << (8 * sizeof(T) - 1);
  const Word bits = word_of(grad);
  const Word sign = (bits & kSign) << (8 * (sizeof(Compute) - sizeof(T)));
  const bool moves = (bits & (kSign - 1)) - 1 < Real<T>::kLargest;
  return bit_cast<Compute>(moves ? word_of(step) | sign : Word(0));
}

// The stored value nearest to `value` that is inside bounds and ball. Rounding clean + eps may land
// half an ulp outside the ball; then the neighbour towards clean is inside, so one correction by
// one ulp suffices. (An end of the ball that rounds to zero is exact, so zero is never corrected.)
template <class T>
BRITTLE_HD T linf_project(typename Real<T>::Compute value, typename Real<T>::Compute clean,
                          const LinfNumbers<typename Real<T>::Compute>& n) {
  using Compute = typename Real<T>::Compute;
  using Word = typename Real<T>::Word;
  value = clamp(value, n.lo, n.hi);
  value = clamp(value, clean - n.eps, clean + n.eps);
  const Word bits = Real<T>::to_word(value);
  const Compute reached = Real<T>::from_word(bits);
  const Compute difference = reached - clean;
  // On the bits, away from zero is +1; so towards clean is -1 if value and difference have one
  // sign.
  using Signed = std::make_signed_t<Word>;
  const Signed signs_differ =
      static_cast<Signed>(word_of(reached) ^ word_of(difference)) >> (8 * sizeof(Word) - 1);
  const Word towards_clean = static_cast<Word>(~signs_differ | 1);
  return stored_as<T>(bits + (std::fabs(difference) > n.eps ? towards_clean : Word(0)));
}

// The peers' projection, rounded to T after each operation as eager code on T is.
template <class T>
BRITTLE_HD T linf_project_difference(typename Real<T>::Compute value,
                                     typename Real<T>::Compute clean,
                                     const LinfNumbers<typename Real<T>::Compute>& n) {
  const auto moved = rounded_to<T>(rounded_to<T>(value) - clean);
  const auto difference = clamp(moved, -n.eps, n.eps);
  return stored_as<T>(Real<T>::to_word(clamp(rounded_to<T>(clean + difference), n.lo, n.hi)));
}

template <class T, Projection projection>
BRITTLE_HD T linf_step_element(T adv, T grad, T clean,
                               const LinfNumbers<typename Real<T>::Compute>& n) {
  const auto moved = widen(adv) + sign_step<T>(grad, n.step);
  if constexpr (projection == Projection::exact) {
    return linf_project<T>(moved, widen(clean), n);
  } else {
    return linf_project_difference<T>(moved, widen(clean), n);
  }
}

template <class T>
BRITTLE_HD T linf_start_element(T clean, uint32_t random,
                                const LinfNumbers<typename Real<T>::Compute>& n) {
  using Compute = typename Real<T>::Compute;
  const Compute centre = widen(clean);
  return linf_project<T>(centre + n.eps * symmetric_uniform<Compute>(random), centre, n);
}

// ---- the operators, checked by the front (gradient_step.cpp), walked by one of the two backends
// ----

struct LinfStep {
  void* adv;
  const void* grad;
  const void* clean;
  Layout<3> layout;  // adv, grad, clean
  Dtype dtype;
  RowValue step_size, eps;
  double lo, hi;
  Projection projection;
  int64_t* trace;  // [N, 3] (trace.h), or null
};

// Calls body with the element type, the projection and whether there is a trace, all as types.
template <class Body>
void visit_linf_step(const LinfStep& op, const Body& body) {
  if (op.layout.rows * op.layout.row_elements == 0) return;
  visit_dtype(op.dtype, [&](auto zero) {
    const auto with_projection = [&](auto projection) {
      op.trace ? body(zero, projection, std::true_type{})
               : body(zero, projection, std::false_type{});
    };
    if (op.projection == Projection::exact) {
      with_projection(std::integral_constant<Projection, Projection::exact>{});
    } else {
      with_projection(std::integral_constant<Projection, Projection::difference>{});
    }
  });
}

struct SignSweep {
  const void* x;
  const void* grad;
  void* out;
  int64_t out_stride;  // elements from out[k] to out[k + 1]
  Layout<3> layout;    // x, grad, out[0]
  Dtype dtype;
  const double* eps;  // [K], on the host
  int64_t count;      // K
  double lo, hi;
  bool keep_ball;  // false: out[k] = clamp(x + eps[k] sign(grad)), which is all that the peers
                   // compute
};

template <class T>
LinfNumbers<typename Real<T>::Compute> sweep_numbers(const SignSweep& op, int64_t k) {
  const double ball = op.keep_ball ? op.eps[k] : std::numeric_limits<double>::infinity();
  return linf_numbers<T, Projection::exact>(op.eps[k], ball, op.lo, op.hi);
}

struct LinfStart {
  const void* clean;
  void* out;
  Layout<2> layout;  // clean, out; rows kept, row-major order
  Dtype dtype;
  RowValue eps;
  const int64_t* sample_ids;  // [N], or null for 0 .. N - 1
  uint64_t seed;
  uint32_t draw;
  double lo, hi;
};

void linf_step_cpu(const LinfStep& op, const Execution& execution);
void linf_step_cuda(const LinfStep& op, const Execution& execution);
void sign_sweep_cpu(const SignSweep& op, const Execution& execution);
void sign_sweep_cuda(const SignSweep& op, const Execution& execution);
void linf_start_cpu(const LinfStart& op, const Execution& execution);
void linf_start_cuda(const LinfStart& op, const Execution& execution);

// ---- the front: what the doors call. Throws std::invalid_argument before any work. ----

void linf_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
                const RowArgument& eps, double lo, double hi, Projection projection,
                const View* trace, const Execution& execution);
void sign_sweep(const View& x, const View& grad, const std::vector<double>& eps, double lo,
                double hi, bool keep_ball, const View& out, const Execution& execution);
void linf_start(const View& clean, const RowArgument& eps, int64_t seed, const View* sample_ids,
                int64_t draw, double lo, double hi, const View& out, const Execution& execution);

}  // namespace brittle
