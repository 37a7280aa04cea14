// pairwise_cosine: the cosine of every row of one matrix with every row of another, or of the same.
//
//   cosine(i, j) = a_i . b_j / (|a_i| |b_j|)
//
// A row is first scaled by the power of two that brings its length (float64: its largest element)
// into [1, 2). That is exact, and makes rows of every finite length alike: no product or sum of
// what follows can overflow, and what underflows is below the result's precision. The dot product
// of the scaled rows is then multiplied by one over their lengths, so that no normalised copy is
// ever made and nothing is rounded but the sum.
//
// What holds of every result: in [-1, 1]; 0 for a zero row, with itself too; NaN for a row that
// holds a NaN or an infinity, in its row and column only; without b exactly symmetric, with a
// diagonal of exactly 1; independent of the number of threads and of the other rows.
#pragma once

#include <cstdint>

#include "common/device.h"
#include "common/host_device.h"
#include "common/layout.h"
#include "common/numeric.h"

namespace brittle {

// dot: of two scaled rows. reciprocal: one over their lengths; 0 for a zero row, NaN for a lost
// one.
template <class Scalar>
BRITTLE_HD Scalar cosine_of(Scalar dot, Scalar reciprocal_a, Scalar reciprocal_b) {
  return clamp(dot * (reciprocal_a * reciprocal_b), Scalar(-1), Scalar(1));
}

// A row's cosine with itself, which the sum would only come close to.
template <class Scalar>
BRITTLE_HD Scalar cosine_with_itself(Scalar reciprocal) {
  return reciprocal > Scalar(0) ? Scalar(1) : reciprocal;
}

// The element type of the result: float64 for float64, else float32.
inline Dtype cosine_dtype(Dtype operands) {
  return operands == Dtype::float64 ? Dtype::float64 : Dtype::float32;
}

// ---- what the doors call ----

// a: [N, D]. b: [M, D], or null for a. out: [N, M].
void pairwise_cosine(const View& a, const View* b, const View& out, const Execution& execution);

// The k largest of each row, descending, of equal ones the lower index first: cosines and indices
// [N, k], contiguous. Without b, a row is not its own neighbour. NaN and -1 where there are fewer.
// check_topk first: it throws before a door has allocated the result.
void check_pairwise(const char* op, const View& a, const View* b);
void check_topk(const View& a, const View* b, int64_t k);
void pairwise_cosine_topk(const View& a, const View* b, int64_t k, const View& cosines,
                          const View& indices, const Execution& execution);

// ---- what the kernels are handed ----

struct PairwiseCosine {
  View a;
  View b;
  bool symmetric;  // b is a
  View out;
};

struct PairwiseTopk {
  View a;
  View b;
  bool symmetric;
  int64_t k;
  void* cosines;
  int64_t* indices;
};

void pairwise_cosine_cpu(const PairwiseCosine& op, const Execution& execution);
void pairwise_cosine_topk_cpu(const PairwiseTopk& op, const Execution& execution);

}  // namespace brittle
