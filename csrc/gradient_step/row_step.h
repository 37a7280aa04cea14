// gradient_step, the steps that need a norm of each row first.
//
//   l2_step_        adv <- the point of the L2 ball and of the bounds reached from adv by a step of
//                   length step_size along the gradient
//   momentum_step_  momentum <- decay * momentum + grad / its L1 norm (or mean, or signs alone);
//                   adv <- linf_step_ along momentum
//
// Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018; Dong et
// al., "Boosting adversarial attacks with momentum", CVPR 2018.
//
// What holds of every result of l2_step_ with L2Projection::exact, given a clean point inside the
// bounds: the L2 norm of result - clean, recomputed in float32 (float64 for float64), is at most
// eps; lo <= result <= hi; no NaN from finite input. What holds of momentum_step_'s adv is what
// holds of linf_step_'s. Elements of the gradient that are NaN or infinite count as zero in both.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/row_sum.h"
#include "common/trace.h"
#include "gradient_step/gradient_step.h"

namespace brittle {

// The gradient's element, or zero where it is NaN or infinite.
template <class T>
BRITTLE_HD typename Real<T>::Compute live(T grad) {
  using Compute = typename Real<T>::Compute;
  return is_finite(grad) ? widen(grad) : Compute(0);
}

// 2^k; k must be the exponent of a normal double.
BRITTLE_HD double power_of_two(int k) {
  return bit_cast<double>(static_cast<uint64_t>(1023 + k) << 52);
}

// ---- l2_step_ ----

// exact         step, then scale the difference into the ball, then clamp and round so that neither
//               bounds nor rounding lead out of it
// project_clip  step, scale, clamp, rounded as eager code: torchattacks, foolbox, AutoAttack
// clip_project  step, clamp, scale by the clamped difference's norm, clamp: ART, cleverhans
enum class L2Projection { exact, project_clip, clip_project };

// What keeps a peer's division by the gradient's norm from being one by zero; ART has none, and as
// here a gradient of zeros then moves nothing.
enum class NormFloor { none, torchattacks, foolbox, autoattack, cleverhans };

struct L2Step {
  void* adv;
  const void* grad;
  const void* clean;
  Layout<3> layout;  // adv, grad, clean; rows kept
  Dtype dtype;
  RowValue step_size, eps;
  double lo, hi;
  L2Projection projection;
  NormFloor floor;
  int64_t* trace;  // [N, 3] (trace.h), or null
};

// The sums of one row, by its gradient g times 2^shift and its difference d = adv - clean:
// g.g, d.g, d.d. Only float64 has squares outside double's range, and needs a shift.
struct L2Scale {
  int shift = 0;
};

template <class T>
struct L2Terms {
  static constexpr int kSums = 3;
  BRITTLE_HD static void of(const L2Scale& scale, T adv, T grad, T clean, double (&term)[kSums]) {
    double g = static_cast<double>(live(grad));
    if constexpr (std::is_same_v<T, double>) g *= power_of_two(scale.shift);
    const auto difference = widen(adv) - widen(clean);
    const double d = is_finite(difference) ? static_cast<double>(difference) : 0.0;
    term[0] = g * g;
    term[1] = d * g;
    term[2] = d * d;
  }
};

// The shift with which a row must be summed again, given its g.g without one; 0 where that is good.
template <class T>
BRITTLE_HD int l2_shift(double squares) {
  if constexpr (!std::is_same_v<T, double>) return 0;
  if (squares < 1e-280) return 600;
  return squares > 1e300 ? -600 : 0;
}

// The numbers of one row's step. The step is grad * up * down * step, up and down being powers of
// two whose product brings the gradient's norm into [1, 2): step_size / norm itself may exceed the
// largest Compute.
template <class Compute>
struct L2Numbers {
  Compute step, up, down, factor, lo, hi;
};

// Where a row's step leads: its numbers, and what its length may be. `measure` says that the length
// of the difference after the step is not known well enough from the sums, and must be summed.
template <class Compute>
struct L2Plan {
  L2Numbers<Compute> numbers;
  double limit;
  bool measure;
};

template <class Compute>
BRITTLE_HD Compute l2_factor(double length, double limit) {
  const double factor = limit / length;
  return length <= limit ? Compute(1) : static_cast<Compute>(factor >= 0.0 ? factor : 0.0);
}

template <class T>
BRITTLE_HD L2Plan<typename Real<T>::Compute> l2_plan(const L2Step& op, int64_t row,
                                                     const double (&sums)[3], L2Scale scale) {
  using Compute = typename Real<T>::Compute;
  constexpr bool kWide = std::is_same_v<Compute, double>;
  // Nothing moves further, and no square overflows.
  constexpr double kLargestStep = kWide ? 0x1p500 : 0x1p100;
  // The room that exact leaves for the rounding of the step and of whoever recomputes the norm.
  constexpr double kMargin = kWide ? 0x1p-40 : 0x1p-18;
  // Lengths below a quarter of what they are the difference of are lost to rounding.
  constexpr double kCancelled = 4.0, kLost = 0x1p-20;

  const double norm = std::sqrt(sums[0]);
  double divisor = norm;
  const double unit = power_of_two(scale.shift);
  switch (op.floor) {
    case NormFloor::none: break;
    case NormFloor::torchattacks: divisor += 1e-10 * unit; break;
    case NormFloor::foolbox: divisor = divisor > 1e-12 * unit ? divisor : 1e-12 * unit; break;
    case NormFloor::autoattack: divisor += 1e-12 * unit; break;
    case NormFloor::cleverhans: divisor = divisor > 1e-6 * unit ? divisor : 1e-6 * unit; break;
  }
  double step = op.step_size.at(row);
  step = step < kLargestStep ? step : kLargestStep;
  if (norm == 0.0) {
    step = 0.0;
    divisor = 1.0;
  }
  const int exponent = static_cast<int>(word_of(divisor) >> 52) - 1023;
  const int k = scale.shift - exponent;
  L2Plan<Compute> plan;
  L2Numbers<Compute>& n = plan.numbers;
  n.step = static_cast<Compute>(step / (divisor * power_of_two(-exponent)));
  n.up = static_cast<Compute>(power_of_two(k / 2));
  n.down = static_cast<Compute>(power_of_two(k - k / 2));
  n.lo = round_nearest<T>(op.lo);
  n.hi = round_nearest<T>(op.hi);

  const double eps = op.eps.at(row);
  plan.limit = op.projection == L2Projection::exact ? eps * (1.0 - kMargin) : eps;
  const double reach = step * (norm / divisor);
  const double squared = sums[2] + 2.0 * step * (sums[1] / divisor) + reach * reach;
  const double length = squared > 0.0 ? std::sqrt(squared) : 0.0;
  const double farthest = std::sqrt(sums[2]) + reach;
  plan.measure = op.projection == L2Projection::clip_project
                     ? farthest > eps
                     : kCancelled * length < farthest && length + kLost * farthest > plan.limit;
  n.factor = l2_factor<Compute>(length, plan.limit);
  return plan;
}

// adv - clean after the step, before it is scaled into the ball.
template <class T, L2Projection projection>
BRITTLE_HD typename Real<T>::Compute l2_moved(T adv, T grad, T clean,
                                              const L2Numbers<typename Real<T>::Compute>& n) {
  const auto step = live(grad) * n.up * n.down * n.step;
  if constexpr (projection == L2Projection::exact) {
    return (widen(adv) - widen(clean)) + step;
  } else {
    auto moved = rounded_to<T>(widen(adv) + rounded_to<T>(step));
    if constexpr (projection == L2Projection::clip_project) moved = clamp(moved, n.lo, n.hi);
    return rounded_to<T>(moved - widen(clean));
  }
}

template <class T, L2Projection projection>
struct L2MovedTerms {
  static constexpr int kSums = 1;
  BRITTLE_HD static void of(const L2Numbers<typename Real<T>::Compute>& n, T adv, T grad, T clean,
                            double (&term)[kSums]) {
    const auto moved = l2_moved<T, projection>(adv, grad, clean, n);
    const double d = is_finite(moved) ? static_cast<double>(moved) : 0.0;
    term[0] = d * d;
  }
};

template <class T, L2Projection projection>
BRITTLE_HD T l2_step_element(T adv, T grad, T clean,
                             const L2Numbers<typename Real<T>::Compute>& n) {
  const auto delta = l2_moved<T, projection>(adv, grad, clean, n) * n.factor;
  const auto centre = widen(clean);
  if constexpr (projection == L2Projection::exact) {
    // No farther from clean than delta, element by element, is no farther in norm.
    return linf_project<T>(centre + delta, centre, {0, std::fabs(delta), n.lo, n.hi});
  } else {
    const auto result = rounded_to<T>(centre + rounded_to<T>(delta));
    return stored_as<T>(Real<T>::to_word(clamp(result, n.lo, n.hi)));
  }
}

// Calls body with the element type and the projection, as types.
template <class Body>
void visit_l2_step(const L2Step& op, const Body& body) {
  if (op.layout.rows * op.layout.row_elements == 0) return;
  visit_dtype(op.dtype, [&](auto zero) {
    switch (op.projection) {
      case L2Projection::exact:
        return body(zero, std::integral_constant<L2Projection, L2Projection::exact>{});
      case L2Projection::project_clip:
        return body(zero, std::integral_constant<L2Projection, L2Projection::project_clip>{});
      case L2Projection::clip_project:
        return body(zero, std::integral_constant<L2Projection, L2Projection::clip_project>{});
    }
  });
}

// ---- momentum_step_ ----

// What the gradient is divided by before it is added to the momentum: the sum or the mean of its
// magnitudes; or nothing, and its signs are added.
enum class Normalize { l1, mean, sign };

struct MomentumStep {
  void* adv;
  const void* grad;
  void* momentum;
  const void* clean;
  Layout<4> layout;  // adv, grad, momentum, clean; rows kept
  Dtype dtype;
  RowValue step_size, eps;
  const double* norm;  // [N], in place of the row's own, or null
  double decay, lo, hi;
  Normalize normalize;
  Projection projection;
  int64_t* trace;  // [N, 3] (trace.h), or null
};

// Whether the rows' sums must be taken.
BRITTLE_HD bool needs_norm(const MomentumStep& op) {
  return op.normalize != Normalize::sign && op.norm == nullptr;
}

struct NoNumbers {};

template <class T>
struct MagnitudeTerms {
  static constexpr int kSums = 1;
  BRITTLE_HD static void of(const NoNumbers&, T, T grad, T, T, double (&term)[kSums]) {
    term[0] = std::fabs(static_cast<double>(live(grad)));
  }
};

template <class Compute>
struct MomentumNumbers {
  LinfNumbers<Compute> step;
  Compute norm, decay;
  bool signs;
};

// A row without a usable norm adds nothing to its momentum: it is divided by infinity.
template <class T, Projection projection>
BRITTLE_HD MomentumNumbers<typename Real<T>::Compute> momentum_numbers(const MomentumStep& op,
                                                                       int64_t row, double sum) {
  using Compute = typename Real<T>::Compute;
  MomentumNumbers<Compute> n;
  n.step = linf_numbers<T, projection>(op.step_size.at(row), op.eps.at(row), op.lo, op.hi);
  n.decay = static_cast<Compute>(op.decay);
  n.signs = op.normalize == Normalize::sign;
  const double elements = static_cast<double>(op.layout.row_elements);
  const double own = op.normalize == Normalize::mean ? sum / elements : sum;
  const Compute norm = static_cast<Compute>(op.norm ? op.norm[row] : own);
  n.norm = norm > Compute(0) ? norm : std::numeric_limits<Compute>::infinity();
  return n;
}

// The new momentum, rounded to T after each operation as eager code on T is.
template <class T>
BRITTLE_HD T momentum_element(T grad, T momentum,
                              const MomentumNumbers<typename Real<T>::Compute>& n) {
  using Compute = typename Real<T>::Compute;
  const Compute added =
      n.signs ? sign_step<T>(grad, Compute(1)) : rounded_to<T>(live(grad) / n.norm);
  return stored_as<T>(Real<T>::to_word(added + rounded_to<T>(widen(momentum) * n.decay)));
}

// Calls body with the element type and the projection, as types.
template <class Body>
void visit_momentum_step(const MomentumStep& op, const Body& body) {
  if (op.layout.rows * op.layout.row_elements == 0) return;
  visit_dtype(op.dtype, [&](auto zero) {
    if (op.projection == Projection::exact) {
      body(zero, std::integral_constant<Projection, Projection::exact>{});
    } else {
      body(zero, std::integral_constant<Projection, Projection::difference>{});
    }
  });
}

void l2_step_cpu(const L2Step& op, const Execution& execution);
void l2_step_cuda(const L2Step& op, const Execution& execution);
void momentum_step_cpu(const MomentumStep& op, const Execution& execution);
void momentum_step_cuda(const MomentumStep& op, const Execution& execution);

// ---- the front: what the doors call. Throws std::invalid_argument before any work. ----

void l2_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
              const RowArgument& eps, double lo, double hi, int64_t projection, int64_t floor,
              const View* trace, const Execution& execution);
void momentum_step_(const View& adv, const View& grad, const View& momentum, const View& clean,
                    const RowArgument& step_size, const RowArgument& eps, double decay, double lo,
                    double hi, int64_t normalize, Projection projection, const View* norm,
                    const View* trace, const Execution& execution);

}  // namespace brittle
