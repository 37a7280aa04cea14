// Row sums on CUDA, in the order that row_sum.h tells.
//
// DESIGN. One block of kSumThreads threads a row. A thread owns four neighbouring lanes, so that it
// takes four neighbouring elements at a time (16 bytes of float32 in one load where rows are
// aligned) and needs no other thread until the row is read. The halving goes through shared memory
// down to one warp (4 KB a sum) and by shuffles from there.
#pragma once

#include <cstdint>

#include "common/host_device.h"
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

// What quads cannot take goes element by element, in a function of its own: its index arithmetic in
// every place that loads or stores would be nearly all of the code, and of the compiler's time.
template <class T>
BRITTLE_HD_CALL Quad<T> gather_quad(const T* row, int dims, const int64_t* size,
                                    const int64_t* stride, int64_t i, int count) {
  Quad<T> quad{};
#pragma unroll 1
  for (int l = 0; l < count; ++l) {
    const T value = row[strided_offset(dims, size, stride, i + l)];
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {  // an index known only at run time would need memory
      if (lane == l) quad.lane[lane] = value;
    }
  }
  return quad;
}

template <class T>
BRITTLE_HD_CALL void scatter_quad(T* row, int dims, const int64_t* size, const int64_t* stride,
                                  int64_t i, int count, Quad<T> quad) {
#pragma unroll 1
  for (int l = 0; l < count; ++l) {
    T value = quad.lane[0];
#pragma unroll
    for (int lane = 1; lane < 4; ++lane) {
      if (lane == l) value = quad.lane[lane];
    }
    row[strided_offset(dims, size, stride, i + l)] = value;
  }
}

// How many of a quad's elements the row has.
BRITTLE_HD int quad_elements(int64_t row_elements, int64_t i) {
  return row_elements - i < 4 ? static_cast<int>(row_elements - i) : 4;
}

// Elements i .. i + 3 of one operand's row; zero past its end.
template <class T, int Operands>
__device__ Quad<T> load_quad(const Layout<Operands>& layout, int operand, const T* row, int64_t i,
                             bool quads) {
  if (quads && i + 4 <= layout.row_elements) return *reinterpret_cast<const Quad<T>*>(row + i);
  return gather_quad(row, layout.dims, layout.size, layout.stride[operand], i,
                     quad_elements(layout.row_elements, i));
}

// By value: what is indexed at run time goes to memory, and that must not be the caller's
// registers.
template <class T, int Operands>
__device__ void store_quad(const Layout<Operands>& layout, int operand, T* row, int64_t i,
                           bool quads, Quad<T> quad) {
  if (quads && i + 4 <= layout.row_elements) {
    *reinterpret_cast<Quad<T>*>(row + i) = quad;
    return;
  }
  scatter_quad(row, layout.dims, layout.size, layout.stride[operand], i,
               quad_elements(layout.row_elements, i), quad);
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

// One row as its block walks it, any number of times: thread t takes quads t, t + kSumThreads, ...
// With `kept` a row of at most kElements is loaded once, into registers.
template <class T, int Operands, bool kept>
class BlockRow {
 public:
  static constexpr int kQuads = sizeof(T) > 4 ? 2 : 4;  // a thread's, in registers
  static constexpr int64_t kElements = int64_t{kQuads} * kSumLanes;

  // `row` is where the operands' rows start.
  __device__ BlockRow(const Layout<Operands>& layout, const Places<T, Operands>& row, bool quads)
      : layout_(layout), row_(row), quads_(quads) {
    if constexpr (kept) load(first(), quad_);
  }

  // Every thread of the block must call.
  template <class Terms, class Numbers>
  __device__ void sums(const Numbers& numbers, double (&total)[Terms::kSums]) {
    double lanes[Terms::kSums][kThreadLanes] = {};
    for_each([&](int64_t i, const Quad<T>(&quad)[Operands]) {
      add_quad<Terms>(numbers, quad, layout_.row_elements - i, lanes);
    });
    add_block_lanes(lanes, total);
  }

  // Calls body(i, quad) for each of the thread's quads: elements i .. i + 3 of every operand, zeros
  // past the row's end. Body may write to the quads; what is kept keeps what it wrote.
  template <class Body>
  __device__ void for_each(const Body& body) {
    if constexpr (kept) {
      visit(first(), quad_, body);
    } else {
      for (int64_t i = first(); i < layout_.row_elements; i += kUnroll * kSumLanes) {
        Quad<T> quad[kUnroll][Operands];
        load(i, quad);
        visit(i, quad, body);
      }
    }
  }

 private:
  static constexpr int kUnroll = 2;  // quads of each operand in flight before the first use of one

  __device__ static int64_t first() { return int64_t{kThreadLanes} * threadIdx.x; }

  template <int quads>
  __device__ void load(int64_t from, Quad<T> (&quad)[quads][Operands]) const {
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      const int64_t i = from + q * kSumLanes;
      if (i >= layout_.row_elements) continue;
#pragma unroll
      for (int o = 0; o < Operands; ++o) {
        quad[q][o] = load_quad(layout_, o, row_.at[o], i, quads_);
      }
    }
  }

  template <int quads, class Body>
  __device__ void visit(int64_t from, Quad<T> (&quad)[quads][Operands], const Body& body) const {
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      const int64_t i = from + q * kSumLanes;
      if (i < layout_.row_elements) body(i, quad[q]);
    }
  }

  const Layout<Operands>& layout_;
  Places<T, Operands> row_;
  bool quads_;
  Quad<T> quad_[kept ? kQuads : 1][Operands];
};

}  // namespace brittle
