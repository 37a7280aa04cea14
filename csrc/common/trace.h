// What a step can tell of itself, row by row: trace, int64 [N, 3].
//
//   trace[row][0]   a fingerprint of the row's new point: the sum, modulo 2^64, over its elements
//   of
//                   fingerprint(i, bits), i being the element's place in the row's memory order and
//                   bits its stored bits, zero-extended
//   trace[row][1]   elements whose gradient is finite and not zero
//   trace[row][2]   elements whose gradient is NaN or infinite
//
// A step of fixed length is a deterministic map of a finite set, so a fingerprint that returns
// means a trajectory that cycles (two points that differ agree by chance once in 2^64). Sums of
// integers have the same bits in every order, so threads and blocks add as they please. CUDA's part
// is trace.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/host_device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/operands.h"
#include "common/simd.h"

namespace brittle {

inline constexpr int kTraceColumns = 3;

struct TraceSums {
  uint64_t fingerprint = 0, moving = 0, not_finite = 0;
};

BRITTLE_HD uint64_t fingerprint(uint64_t index, uint64_t bits) {
  uint64_t z = index * 0x9E3779B97F4A7C15u + bits;
  z = (z ^ (z >> 32)) * 0xD6E8FEB86659FD93u;
  z = (z ^ (z >> 29)) * 0xBF58476D1CE4E5B9u;
  return z ^ (z >> 32);
}

template <class T>
BRITTLE_HD typename Real<T>::Word magnitude_bits(T value) {
  using Word = typename Real<T>::Word;
  return word_of(value) & ((Word(1) << (8 * sizeof(T) - 1)) - 1);
}

template <class T>
BRITTLE_HD bool is_finite(T value) {
  return magnitude_bits(value) <= Real<T>::kLargest;
}

template <class T>
BRITTLE_HD void trace_element(T adv, T grad, int64_t index, TraceSums& sums) {
  const auto magnitude = magnitude_bits(grad);
  sums.fingerprint += fingerprint(static_cast<uint64_t>(index), word_of(adv));
  sums.moving += magnitude - 1 < Real<T>::kLargest;
  sums.not_finite += magnitude > Real<T>::kLargest;
}

// ---- CPU ----

// Of elements side by side, at most 2^32. Counted before the step: adv may be grad itself.
template <class T>
struct TraceGradientTile {
  BRITTLE_INLINE static void run(const T* grad, int64_t count, TraceSums* sums) {
    using Word = typename Real<T>::Word;
    Word moving = 0, not_finite = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Word magnitude = magnitude_bits(grad[i]);
      moving += magnitude - 1 < Real<T>::kLargest ? 1 : 0;
      not_finite += magnitude > Real<T>::kLargest ? 1 : 0;
    }
    sums->moving += moving;
    sums->not_finite += not_finite;
  }
};

// Elements first, first + 1, ... of a row, side by side, after the step.
template <class T>
struct TracePointTile {
  BRITTLE_INLINE static void run(const T* adv, int64_t first, int64_t count, TraceSums* sums) {
    uint64_t mixed = 0;
    for (int64_t i = 0; i < count; ++i) {
      mixed += fingerprint(static_cast<uint64_t>(first + i), word_of(adv[i]));
    }
    sums->fingerprint += mixed;
  }
};

// Several threads may hold parts of one row.
inline void add_trace(int64_t* trace, int64_t row, const TraceSums& sums) {
  uint64_t* const to = reinterpret_cast<uint64_t*>(trace) + row * kTraceColumns;
  __atomic_fetch_add(to, sums.fingerprint, __ATOMIC_RELAXED);
  __atomic_fetch_add(to + 1, sums.moving, __ATOMIC_RELAXED);
  __atomic_fetch_add(to + 2, sums.not_finite, __ATOMIC_RELAXED);
}

inline void clear_trace(int64_t* trace, int64_t rows) {
  std::fill(trace, trace + rows * kTraceColumns, 0);
}

// ---- the front ----

// int64 [N, 3] beside `like`, or none.
inline int64_t* check_trace(const char* op, const View* trace, const View& like,
                            const char* like_name) {
  if (trace == nullptr) return nullptr;
  const int64_t rows = like.ndim > 0 ? like.size[0] : 1;
  if (like.ndim == 0 || trace->ndim != 2 || trace->size[0] != rows ||
      trace->size[1] != kTraceColumns) {
    fail(op, "trace must be [N, 3]; got ", trace->shape(), " for N = ", rows);
  }
  if (std::string(trace->dtype_name) != "int64") {
    fail(op, "trace must be int64; got ", trace->dtype_name);
  }
  if (rows > 0 && (trace->stride[1] != 1 || (rows > 1 && trace->stride[0] != kTraceColumns))) {
    fail(op, "trace must be contiguous");
  }
  check_same_device(op, "trace", *trace, like_name, like);
  return static_cast<int64_t*>(trace->data);
}

}  // namespace brittle
