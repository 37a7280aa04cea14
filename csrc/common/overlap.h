// Whether two views share memory, and whether a view meets itself.
//
// Views whose stretches of memory are apart share nothing, which is told from their ends; most
// calls end there. Where the stretches meet, as those of the channels of one buffer do, the
// question is exact: is there an element of each with a byte in common? That is one equation,
//
//   c[0] x[0] + ... + c[n-1] x[n-1] + r = target,   0 <= x[k] <= most[k],  0 <= r <= slack
//
// c being the strides in bytes, searched from the largest stride down. Strides of arrays are
// nested, so that a level has one or two values to try; for others the search gives up after
// kBudget places and takes them for shared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/layout.h"

namespace brittle {
namespace overlap {

class Equation {
 public:
  explicit Equation(int64_t slack) : slack_(slack) {}

  void add(int64_t coefficient, int64_t most) {
    if (coefficient == 0 || most <= 0) return;
    int at = count_++;  // the coefficients descend
    for (; at > 0 && terms_[at - 1].coefficient < coefficient; --at) terms_[at] = terms_[at - 1];
    terms_[at] = {coefficient, most};
  }

  bool solvable(int64_t target) {
    reach_[count_] = slack_;
    divisor_[count_] = 0;
    for (int k = count_ - 1; k >= 0; --k) {
      reach_[k] = reach_[k + 1] + terms_[k].coefficient * terms_[k].most;
      divisor_[k] = std::gcd(divisor_[k + 1], terms_[k].coefficient);
    }
    budget_ = kBudget;
    return solvable_from(0, target);
  }

 private:
  static constexpr int kBudget = 10000;
  struct Term {
    int64_t coefficient, most;
  };

  bool solvable_from(int k, int64_t target) {
    if (target < 0 || target > reach_[k]) return false;
    if (k == count_) return true;
    if (target % divisor_[k] > slack_) return false;
    const auto [coefficient, most] = terms_[k];
    const int64_t beyond = target - reach_[k + 1];  // what the others cannot reach
    const int64_t least = beyond > 0 ? (beyond + coefficient - 1) / coefficient : 0;
    for (int64_t x = std::min(most, target / coefficient); x >= least; --x) {
      if (--budget_ < 0 || solvable_from(k + 1, target - coefficient * x)) return true;
    }
    return false;
  }

  const int64_t slack_;
  int count_ = 0;
  Term terms_[2 * kMaxDims];
  int64_t reach_[2 * kMaxDims + 1];    // the largest sum of a term and those behind it
  int64_t divisor_[2 * kMaxDims + 1];  // of all of them
  int budget_ = 0;
};

// The first byte of a view, and the one behind its last.
struct Extent {
  const char* begin;
  const char* end;
};

inline Extent extent_of(const View& view) {
  int64_t least = 0, most = 0;
  for (int d = 0; d < view.ndim; ++d) {
    const int64_t way = (view.size[d] - 1) * view.stride[d];
    (way < 0 ? least : most) += way;
  }
  const char* const data = static_cast<const char*>(view.data);
  return {data + least * view.item, data + (most + 1) * view.item};
}

}  // namespace overlap

// The same elements in the same order.
inline bool same_memory(const View& a, const View& b) {
  if (a.data != b.data || a.item != b.item || a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d) {
    if (a.size[d] != b.size[d] || (a.size[d] > 1 && a.stride[d] != b.stride[d])) return false;
  }
  return true;
}

inline bool share_memory(const View& a, const View& b) {
  if (a.elements() == 0 || b.elements() == 0) return false;
  const overlap::Extent of_a = overlap::extent_of(a), of_b = overlap::extent_of(b);
  if (of_a.end <= of_b.begin || of_b.end <= of_a.begin) return false;
  // Elements of a counted from its first byte on, those of b from its last byte back.
  overlap::Equation equation(a.item - 1 + b.item - 1);
  for (const View* view : {&a, &b}) {
    for (int d = 0; d < view->ndim; ++d) {
      equation.add(std::abs(view->stride[d]) * view->item, view->size[d] - 1);
    }
  }
  return equation.solvable(of_b.end - 1 - of_a.begin);
}

// Whether two elements of a view share memory, as those of an expanded one do.
inline bool meets_itself(const View& view) {
  if (view.elements() < 2) return false;
  struct Dim {
    int64_t size, stride;
  };
  Dim dims[kMaxDims];
  int count = 0;
  for (int d = 0; d < view.ndim; ++d) {
    if (view.size[d] == 1) continue;
    if (view.stride[d] == 0) return true;
    dims[count++] = {view.size[d], std::abs(view.stride[d]) * view.item};
  }
  std::stable_sort(dims, dims + count,
                   [](const Dim& a, const Dim& b) { return a.stride > b.stride; });
  // Two elements whose indices first differ in dimension k: by 1 + x there, and by y - (size - 1)
  // in every later one.
  for (int k = 0; k < count; ++k) {
    overlap::Equation equation(2 * (view.item - 1));
    int64_t target = view.item - 1 - dims[k].stride;
    equation.add(dims[k].stride, dims[k].size - 2);
    for (int d = k + 1; d < count; ++d) {
      equation.add(dims[d].stride, 2 * (dims[d].size - 1));
      target += dims[d].stride * (dims[d].size - 1);
    }
    if (target >= 0 && equation.solvable(target)) return true;
  }
  return false;
}

}  // namespace brittle
