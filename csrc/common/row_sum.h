// Sums over the elements of a row, in double and in one order, so that they have the same bits at
// every SIMD level, thread count and device.
//
// The order: kSumLanes lanes, all zero at first; lane l adds the terms of elements l, l +
// kSumLanes, l + 2 kSumLanes, ... of the row, in the memory order of the first operand; then the
// upper half of the lanes is added to the lower half until one is left. A row of fewer elements
// leaves lanes at zero, and adding zero changes no lane (none is ever -0), so the halving may start
// at the smallest power of two that holds the row.
//
// What is summed is a Terms: a struct with
//   static constexpr int kSums                                       how many sums go side by side
//   BRITTLE_HD static void of(const Numbers&, T..., double (&term)[kSums])   one element's terms
// of one element of each operand. CUDA's walk of the same order is row_sum.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/host_device.h"
#include "common/layout.h"
#include "common/simd.h"
#include "common/walk.h"

namespace brittle {

inline constexpr int kSumLanes = 1024;

// One place in every operand: the start of the operands, of a row, or of a tile.
template <class T, int Operands>
struct Places {
  const T* at[Operands];
};

namespace row_sum {

// Adds the terms of `count` neighbouring elements to as many neighbouring lanes; the lanes of
// another sum lie kSumLanes further on.
template <class Terms, class T, int Operands, class Numbers>
struct AddTile {
  BRITTLE_INLINE static void run(Places<T, Operands> from, double* lanes, int64_t count,
                                 Numbers numbers) {
    add(from, lanes, count, numbers, std::make_integer_sequence<int, Operands>{},
        std::make_integer_sequence<int, Terms::kSums>{});
  }

 private:
  template <int... O, int... S>
  BRITTLE_INLINE static void add(const Places<T, Operands>& from, double* __restrict lanes,
                                 int64_t count, const Numbers& numbers,
                                 std::integer_sequence<int, O...>,
                                 std::integer_sequence<int, S...>) {
    for (int64_t i = 0; i < count; ++i) {
      double term[Terms::kSums];
      Terms::of(numbers, from.at[O][i]..., term);
      ((lanes[S * kSumLanes + i] += term[S]), ...);
    }
  }
};

struct HalveLanes {
  BRITTLE_INLINE static void run(double* lanes, int width) {
    for (int half = width / 2; half > 0; half /= 2) {
      double* const upper = lanes + half;
#pragma GCC ivdep
      for (int l = 0; l < half; ++l) lanes[l] += upper[l];
    }
  }
};

}  // namespace row_sum

// The sums of one row, on the CPU. Strided operands go through tiles of kSumLanes elements.
template <class Terms, class T, int Operands, class Numbers>
void row_sums(simd::Level level, const Layout<Operands>& layout, int64_t row,
              const Places<T, Operands>& operands, const Numbers& numbers,
              double (&total)[Terms::kSums]) {
  const int64_t elements = layout.row_elements;
  int width = 1;
  while (width < kSumLanes && width < elements) width *= 2;
  alignas(64) double lanes[Terms::kSums][kSumLanes];
  for (int s = 0; s < Terms::kSums; ++s) std::fill(lanes[s], lanes[s] + width, 0.0);
  for_each_span(layout, row * elements, (row + 1) * elements, [&](const Span<Operands>& span) {
    T tiles[Operands][kSumLanes];
    for (int64_t done = 0; done < span.count;) {
      const int64_t lane = (span.first + done) % kSumLanes;
      const int64_t count = std::min(kSumLanes - lane, span.count - done);
      Places<T, Operands> from;
      for (int o = 0; o < Operands; ++o) {
        from.at[o] = gathered(operands.at[o] + span.offset[o] + done * span.stride[o],
                              span.stride[o], count, tiles[o]);
      }
      simd::call<row_sum::AddTile<Terms, T, Operands, Numbers>>(level, from, lanes[0] + lane, count,
                                                                numbers);
      done += count;
    }
  });
  for (int s = 0; s < Terms::kSums; ++s) {
    simd::call<row_sum::HalveLanes>(level, static_cast<double*>(lanes[s]), width);
    total[s] = lanes[s][0];
  }
}

}  // namespace brittle
