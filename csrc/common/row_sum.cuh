// Row sums on CUDA, in the order that row_sum.h tells.
//
// DESIGN. One block of kSumThreads threads a row. A thread owns four neighbouring lanes, so that it
// takes four neighbouring elements at a time (16 bytes of float32 in one load where rows are
// aligned) and needs no other thread until the row is read. The halving goes through shared memory
// down to one warp (4 KB a sum) and by shuffles from there.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/layout.h"
#include "common/row_sum.h"

namespace brittle {

inline constexpr int kSumThreads = 256;
inline constexpr int kThreadLanes = kSumLanes / kSumThreads;
static_assert(kThreadLanes == 4);

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
  T lane[4];
};

// The places of a row's first elements.
template <class T, int Operands>
BRITTLE_HD Places<T, Operands> row_places(const Layout<Operands>& layout, int64_t row,
                                          Places<T, Operands> operands) {
  for (int o = 0; o < Operands; ++o) operands.at[o] += row * layout.row_stride[o];
  return operands;
}

// Whether every row of every operand is dense and starts on a boundary of a quad.
template <class T, int Operands>
bool takes_quads(const Layout<Operands>& layout, const Places<T, Operands>& operands) {
  if (!layout.dense()) return false;
  for (int o = 0; o < Operands; ++o) {
    if (reinterpret_cast<uintptr_t>(operands.at[o]) % alignof(Quad<T>) != 0) return false;
    if (layout.rows > 1 && layout.row_stride[o] * sizeof(T) % alignof(Quad<T>) != 0) return false;
  }
  return true;
}

// Elements i .. i + 3 of one operand's row; zero past its end.
template <class T, int Operands>
__device__ Quad<T> load_quad(const Layout<Operands>& layout, int operand, const T* row, int64_t i,
                             bool quads) {
  if (quads && i + 4 <= layout.row_elements) return *reinterpret_cast<const Quad<T>*>(row + i);
  Quad<T> quad{};
#pragma unroll 1  // the index arithmetic four times over would be most of the code
  for (int l = 0; l < 4; ++l) {
    if (i + l < layout.row_elements) quad.lane[l] = row[layout.offset(operand, i + l)];
  }
  return quad;
}

template <class T, int Operands>
__device__ void store_quad(const Layout<Operands>& layout, int operand, T* row, int64_t i,
                           bool quads, const Quad<T>& quad) {
  if (quads && i + 4 <= layout.row_elements) {
    *reinterpret_cast<Quad<T>*>(row + i) = quad;
    return;
  }
#pragma unroll 1
  for (int l = 0; l < 4; ++l) {
    if (i + l < layout.row_elements) row[layout.offset(operand, i + l)] = quad.lane[l];
  }
}

// Adds the lanes of all threads; every thread gets the totals. Every thread of the block must call.
template <int sums>
__device__ void add_block_lanes(double (&lanes)[sums][kThreadLanes], double (&total)[sums]) {
  __shared__ double upper[sums][kThreadLanes][kSumThreads / 2];
  __shared__ double totals[sums];
  const int thread = static_cast<int>(threadIdx.x);
  for (int half = kSumThreads / 2; half >= 32; half /= 2) {
    if (thread >= half && thread < 2 * half) {
      for (int s = 0; s < sums; ++s) {
        for (int l = 0; l < kThreadLanes; ++l) upper[s][l][thread - half] = lanes[s][l];
      }
    }
    __syncthreads();
    if (thread < half) {
      for (int s = 0; s < sums; ++s) {
        for (int l = 0; l < kThreadLanes; ++l) lanes[s][l] += upper[s][l][thread];
      }
    }
    __syncthreads();
  }
  if (thread < 32) {
    for (int s = 0; s < sums; ++s) {
      for (unsigned half = 16; half > 0; half /= 2) {
        for (int l = 0; l < kThreadLanes; ++l) {
          lanes[s][l] += __shfl_down_sync(0xffffffffu, lanes[s][l], half);
        }
      }
      if (thread == 0) {
        totals[s] = (lanes[s][0] + lanes[s][2]) + (lanes[s][1] + lanes[s][3]);
      }
    }
  }
  __syncthreads();
  for (int s = 0; s < sums; ++s) total[s] = totals[s];
}

namespace row_sum {

template <class Terms, class T, int Operands, class Numbers, int... O>
__device__ void add_quad(const Numbers& numbers, const Quad<T> (&quad)[Operands], int64_t left,
                         double (&lanes)[Terms::kSums][kThreadLanes],
                         std::integer_sequence<int, O...>) {
#pragma unroll
  for (int l = 0; l < kThreadLanes; ++l) {
    if (l >= left) continue;
    double term[Terms::kSums];
    Terms::of(numbers, quad[O].lane[l]..., term);
    for (int s = 0; s < Terms::kSums; ++s) lanes[s][l] += term[s];
  }
}

}  // namespace row_sum

// Adds the terms of a quad of elements of which the row has `left` (four or more, or fewer at its
// end) to the thread's lanes.
template <class Terms, class T, int Operands, class Numbers>
__device__ void add_quad(const Numbers& numbers, const Quad<T> (&quad)[Operands], int64_t left,
                         double (&lanes)[Terms::kSums][kThreadLanes]) {
  row_sum::add_quad<Terms>(numbers, quad, left, lanes, std::make_integer_sequence<int, Operands>{});
}

// The sums of one row, whose first elements are at `row`. Every thread of the block must call.
template <class Terms, class T, int Operands, class Numbers>
__device__ void block_row_sums(const Layout<Operands>& layout, const Places<T, Operands>& row,
                               const Numbers& numbers, bool quads, double (&total)[Terms::kSums]) {
  constexpr int kUnroll = 2;
  double lanes[Terms::kSums][kThreadLanes] = {};
  const int64_t count = layout.row_elements;
  for (int64_t first = kThreadLanes * threadIdx.x; first < count; first += kUnroll * kSumLanes) {
    Quad<T> quad[kUnroll][Operands];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kSumLanes;
      if (i >= count) continue;
#pragma unroll
      for (int o = 0; o < Operands; ++o) {
        quad[u][o] = load_quad(layout, o, row.at[o], i, quads);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = first + u * kSumLanes;
      if (i < count) add_quad<Terms>(numbers, quad[u], count - i, lanes);
    }
  }
  add_block_lanes(lanes, total);
}

}  // namespace brittle
