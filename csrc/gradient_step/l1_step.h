// l1_step_: one step of a sparse L1 attack, fused.
//
//   adv <- the point of the L1 ball and of the bounds nearest to adv + move, where move shares
//   step_size out equally among the k elements of the largest gradient, along its signs; elements
//   that are at a bound already and would leave it are passed over
//
// Tramer and Boneh, "Adversarial training and robustness for multiple perturbations", NeurIPS 2019
// (the step); Duchi et al., "Efficient projections onto the l1-ball for learning in high
// dimensions", ICML 2008 (the projection, without bounds); Croce and Hein, "Mind the box: l1-APGD
// for sparse adversarial attacks on image classifiers", ICML 2021 (both sets at once).
//
// The nearest point of both sets moves each element to clean + sign(d) clamp(|d| - shrink, 0,
// room), where d = adv + move - clean, room is the way from clean to the bound on d's side, and
// shrink is one number for the row: 0 where that is in the ball, else the root of a decreasing,
// piecewise linear sum. Neither the selection nor the root needs a sorted row.
//
// What holds of every result, given a clean point inside the bounds:
//   sum |result - clean| <= eps, as recomputed in float32 (float64 for float64); lo <= result <=
//   hi; an element whose gradient is zero, NaN or infinite is not moved; one that is neither moved
//   nor shrunk keeps its bits, so that projecting twice is projecting once; no NaN from finite
//   input.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/device.h"
#include "common/host_device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/trace.h"
#include "gradient_step/gradient_step.h"

namespace brittle {

// The gradient, or 0 where the element is at the bound that the gradient leads to: moving it would
// waste its share of the step, and were it among the largest, every later step's too.
template <class T>
BRITTLE_HD T l1_free(T adv, T grad, typename Real<T>::Compute lo, typename Real<T>::Compute hi) {
  constexpr typename Real<T>::Word kSign = typename Real<T>::Word(1) << (8 * sizeof(T) - 1);
  const auto at = widen(adv);
  const auto bits = word_of(grad);
  const bool blocked = (bits & kSign) != 0 ? at <= lo : at >= hi;
  return stored_as<T>(blocked ? 0 : bits);
}

// ---- the moved elements: all whose magnitude, as the integer that its bits are, is finite and at
// least a threshold. The threshold is the k-th largest one, found by bisection. ----

template <class T>
BRITTLE_HD bool l1_moves(T grad, typename Real<T>::Word threshold) {
  return magnitude_bits(grad) - threshold <= Real<T>::kLargest - threshold;
}

// The largest threshold that at least `wanted` elements reach, between 1 (which all do that can be
// moved) and hi (which none does). A round counts the elements that reach each of some pivots. It
// ends early at a threshold that just `wanted` reach: whatever lies between, the set is the same.
template <class T, int pivots>
struct L1Selection {
  using Word = typename Real<T>::Word;
  Word lo = 1, hi;
  int64_t count;  // of elements that reach lo
  int64_t wanted;

  // largest: no magnitude is above it.
  BRITTLE_HD L1Selection(int64_t movable, double k, Word largest)
      : hi(largest + 1),
        count(movable),
        wanted(k < static_cast<double>(movable) ? static_cast<int64_t>(k) : movable) {}
  BRITTLE_HD bool found() const { return count == wanted || hi - lo <= 1; }
  // The p-th of pivots that part the range equally.
  BRITTLE_HD Word pivot(int p) const {
    const Word part = (hi - lo) / (pivots + 1);
    const Word above = (part > 0 ? part : 1) * static_cast<Word>(p + 1);
    return lo + (above < hi - lo ? above : hi - lo - 1);
  }
  // pivot: ascending, above lo and below hi.
  BRITTLE_HD void narrow(const Word (&pivot)[pivots], const int64_t (&reached)[pivots]) {
    for (int p = 0; p < pivots; ++p) {
      if (reached[p] < wanted) {
        hi = pivot[p];
        return;
      }
      lo = pivot[p];
      count = reached[p];
    }
  }
};

// ---- the elements ----

// The numbers of one row's step, in the type the arithmetic is done in.
template <class T>
struct L1Numbers {
  typename Real<T>::Word threshold;
  typename Real<T>::Compute step, lo, hi;  // step: of one element
  double shrink = 0.0;
};

template <class T>
BRITTLE_HD L1Numbers<T> l1_numbers(typename Real<T>::Word threshold, int64_t moving, double step,
                                   double lo, double hi) {
  using Compute = typename Real<T>::Compute;
  const double share = moving > 0 ? step / static_cast<double>(moving) : 0.0;
  return {threshold, static_cast<Compute>(share), round_nearest<T>(lo), round_nearest<T>(hi)};
}

// value, or 0 where its sign is negative; NaN stays NaN.
template <class Compute>
BRITTLE_HD Compute not_negative(Compute value) {
  const auto bits = word_of(value);
  return bit_cast<Compute>(bits & ((bits >> (8 * sizeof(bits) - 1)) - 1));
}

// Where an element would be without the ball: how far from clean and on which side (the sign's
// bit), and the room on that side; none for NaN. Chosen on the bits: from comparisons with
// constants that depend on one another compilers make a path for each outcome, and vectorise that
// badly.
template <class T>
struct L1Way {
  typename Real<T>::Compute move, length, room;
  typename Real<T>::Word side;
};

template <class T>
BRITTLE_HD L1Way<T> l1_way(T adv, T grad, T clean, const L1Numbers<T>& n) {
  using Compute = typename Real<T>::Compute;
  using Word = typename Real<T>::Word;
  constexpr Word kStoredSign = Word(1) << (8 * sizeof(T) - 1);
  constexpr Word kSign = Word(1) << (8 * sizeof(Word) - 1);
  const Word sign = (word_of(grad) & kStoredSign) << (8 * (sizeof(Compute) - sizeof(T)));
  const bool moves = l1_moves(l1_free(adv, grad, n.lo, n.hi), n.threshold);
  const Word move = moves ? word_of(n.step) | sign : Word(0);
  const Compute centre = widen(clean);
  const Word way = word_of((widen(adv) - centre) + bit_cast<Compute>(move));
  const Word side = way & kSign;
  const Word below = static_cast<Word>(Word(0) - (side >> (8 * sizeof(Word) - 1)));
  const Word room = (word_of(centre - n.lo) & below) | (word_of(n.hi - centre) & ~below);
  constexpr Word kInfinity = Real<Compute>::kLargest + 1;
  const Word length = way & ~kSign;
  return {bit_cast<Compute>(move), bit_cast<Compute>(length - (length == kInfinity ? 1 : 0)),
          not_negative(bit_cast<Compute>(length > kInfinity ? Word(0) : room)), side};
}

// How much of a way stays, and whether more shrinking would take from it (all bits, or none). NaN
// counts as nothing.
struct L1Kept {
  double length;
  uint64_t gives;
};

BRITTLE_HD L1Kept l1_kept(double length, double room, double shrink) {
  const double left = length - shrink;
  const double positive = not_negative(left);
  const uint64_t above = left > 0.0 ? ~uint64_t{0} : 0;
  const uint64_t inside = left <= room ? ~uint64_t{0} : 0;
  return {positive < room ? positive : room, above & inside};
}

// A length below the given one by no more than its last place, so that the sum of the ways is no
// more than the sum that was searched. Scaling by 1 - 2^-24 takes off at least half a place of a
// normal float, 2^-150 half a place of the others.
template <class Compute>
BRITTLE_HD Compute l1_rounded(double length) {
  if constexpr (sizeof(Compute) == sizeof(double)) return length;
  return static_cast<Compute>(length * (1.0 - 0x1p-24) - 0x1p-150);
}

// shrunk: n.shrink is not 0.
template <bool shrunk, class T>
BRITTLE_HD T l1_step_element(T adv, T grad, T clean, const L1Numbers<T>& n) {
  using Compute = typename Real<T>::Compute;
  const L1Way<T> way = l1_way(adv, grad, clean, n);
  Compute kept = way.room < way.length ? way.room : way.length;  // NaN stays NaN
  if constexpr (shrunk) {
    const double left = static_cast<double>(way.length) - n.shrink;
    const Compute rounded = not_negative(l1_rounded<Compute>(left));
    kept = way.room < rounded ? way.room : rounded;
  }
  const Compute centre = widen(clean);
  const T projected = linf_project<T>(centre + bit_cast<Compute>(word_of(kept) | way.side), centre,
                                      {Compute(0), kept, n.lo, n.hi});
  if constexpr (shrunk) return projected;
  const T as_it_was = stored_as<T>(Real<T>::to_word(clamp(widen(adv), n.lo, n.hi)));
  return way.move == Compute(0) ? as_it_was : projected;
}

// ---- the shrinking ----

// The radius that the search aims at, inside eps by more than all later rounding adds: of the
// elements, and of an evaluator's own sum.
template <class Compute>
BRITTLE_HD double l1_radius(double eps) {
  return eps * (sizeof(Compute) == sizeof(float) ? 1.0 - 0x1p-18 : 1.0 - 0x1p-40);
}

// The root of sum_i clamp(|way_i| - shrink, 0, room_i) = radius, for a sum that is above radius at
// 0, by Newton's iteration inside a bracket: exact on the piece that the root is on, and from its
// left without rooms never past the root. Where it leaves the bracket the bracket is halved. The
// result is a number at which the sum was found to be at most radius, and by at most a relative
// kBand (or by what the next number below would change).
template <class Compute>
struct L1Shrink {
  static constexpr double kBand = sizeof(Compute) == sizeof(float) ? 0x1p-30 : 0x1p-44;
  static constexpr int kNewtonRounds = 40;  // then by the bits, 64 more at most
  double radius;
  static constexpr double kMost = std::numeric_limits<Compute>::max();
  double lo = 0.0, hi = kMost;
  double at = 0.0;
  int rounds = 0;
  bool found = false;

  // sum: at shrink 0.
  BRITTLE_HD L1Shrink(double sum, double radius_) : radius(radius_) {
    found = !(sum > radius);
    if (!found && radius == 0.0) {
      at = hi;
      found = true;
    }
  }

  // giving: the elements from which more shrinking takes, so the slope of the sum.
  BRITTLE_HD void narrow(double sum, double giving) {
    const double slack = radius * kBand + giving * at * 0x1p-50;
    if (sum > radius) {
      lo = at;
    } else {
      hi = at;
      if (sum >= radius - slack) {
        found = true;
        return;
      }
    }
    double next = at + (sum - (radius - 0.5 * slack)) / giving;
    if (rounds >= kNewtonRounds || !(next > lo && next < hi)) {
      // Halved by the bits, the exponent first, where the ends are of different sizes.
      const bool far = lo > 0.0 ? hi > 16.0 * lo : hi == kMost;
      const uint64_t below = word_of(lo);
      next = far || rounds >= kNewtonRounds ? bit_cast<double>(below + (word_of(hi) - below) / 2)
                                            : lo + 0.5 * (hi - lo);
    }
    found = !(next > lo && next < hi);
    at = found ? hi : next;
    ++rounds;
  }
};

// ---- the operator, checked by the front (l1_step.cpp), walked by one of the two backends ----

struct L1Step {
  void* adv;
  const void* grad;
  const void* clean;
  Layout<3> layout;  // adv, grad, clean; rows kept, memory order
  Dtype dtype;
  RowValue step_size, eps, k;
  double lo, hi;
  int64_t* trace;  // [N, 3], or null
};

void l1_step_cpu(const L1Step& op, const Execution& execution);
void l1_step_cuda(const L1Step& op, const Execution& execution);

// The front: what the doors call. Throws std::invalid_argument before any work.
void l1_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
              const RowArgument& eps, const RowArgument& k, double lo, double hi, const View* trace,
              const Execution& execution);

}  // namespace brittle
