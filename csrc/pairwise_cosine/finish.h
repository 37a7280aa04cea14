// A block of sums on its way to the result: normalised, added to what is there, stored, mirrored.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "common/walk.h"
#include "pairwise_cosine/pairwise_cosine.h"
#include "pairwise_cosine/tile.h"
#include "pairwise_cosine/transpose.h"

namespace brittle::cosine {

inline constexpr int kBlock = 8;  // panels, of either side
inline constexpr int64_t kTile = kPanel * kPanel;

// A block on its way to the result: a grid of tiles, one column of them after the other.
template <class Scalar>
struct Block {
  Scalar* sums;
  int row_tiles, column_tiles;
  int rows, columns;
  Scalar* out;
  int64_t row_stride, stride;
  const Scalar* row_reciprocal;
  const Scalar* column_reciprocal;
  bool first, last;  // superblock
  bool diagonal;     // only tiles on and above the diagonal are there
  bool mirror;       // also stored transposed, at `mirrored`
  bool stream;       // past the cache
  Scalar* mirrored;
  BRITTLE_INLINE Scalar* tile(int i, int j) const { return sums + (j * kBlock + i) * kTile; }
};

// Lines of the result are written as long as the block is wide: rows that are a power of two apart
// would drive each other out of the cache. They are fetched kAhead rows before they are needed:
// each line starts anew, and no processor foresees where.
template <class Scalar>
struct FinishBlock {
  BRITTLE_INLINE static void run(const Block<Scalar>* block) {
    const Block<Scalar>& b = *block;
    alignas(64) Scalar reciprocal[kBlock * kPanel] = {};
    for (int c = 0; c < b.columns; ++c) reciprocal[c] = b.column_reciprocal[c];
    alignas(64) Scalar edge[kPanel] = {};
    const bool streams = b.stream && b.first && b.last;  // nothing is read
    if (!streams) fetch(b, 0, kAhead);
    for (int row = 0; row < b.rows; ++row) {
      if (!streams) fetch(b, row + kAhead, row + kAhead + 1);
      const int i = row / kPanel, r = row % kPanel;
      for (int j = b.diagonal ? i : 0; j < b.column_tiles; ++j) {
        const int column = j * kPanel;
        const int count = b.columns - column < kPanel ? b.columns - column : kPanel;
        Scalar* const sums = b.tile(i, j) + r * kPanel;
        Scalar* const out = b.out + row * b.row_stride + column * b.stride;
        const bool whole = count == kPanel && b.stride == 1;
        Scalar* const to = whole ? out : edge;
        if (!b.first) {
          for (int c = 0; c < count && !whole; ++c) edge[c] = out[c * b.stride];
#pragma GCC ivdep
#pragma GCC unroll 1
          for (int c = 0; c < kPanel; ++c) sums[c] += to[c];
        }
        if (b.last) {
          const Scalar row_reciprocal = b.row_reciprocal[row];
#pragma GCC ivdep
#pragma GCC unroll 1
          for (int c = 0; c < kPanel; ++c) {
            sums[c] = cosine_of(sums[c], row_reciprocal, reciprocal[column + c]);
          }
          if (b.diagonal && i == j) sums[r] = cosine_with_itself(row_reciprocal);
        }
        put(sums, out, count, b.stride, streams);
      }
    }
    if (b.last && b.mirror) mirror(b);
    if (b.last && b.stream) finish_streaming();
  }

 private:
  static constexpr int kAhead = 6;

  BRITTLE_INLINE static void fetch(const Block<Scalar>& b, int begin, int end) {
    constexpr int kLine = 64 / sizeof(Scalar);
    for (int row = begin; row < end && row < b.rows; ++row) {
      const int first = b.diagonal ? row / kPanel * kPanel : 0;
      for (int column = first; column < b.columns; column += kLine) {
        __builtin_prefetch(b.out + row * b.row_stride + column * b.stride, 1);
      }
    }
  }

  BRITTLE_INLINE static void put(const Scalar* from, Scalar* to, int count, int64_t stride,
                                 bool streams) {
    if (count == kPanel && stride == 1 && streams) {
      stream(from, kPanel, to);
    } else if (count == kPanel && stride == 1) {
#pragma GCC ivdep
#pragma GCC unroll 1
      for (int c = 0; c < kPanel; ++c) to[c] = from[c];
    } else {
      for (int c = 0; c < count; ++c) to[c * stride] = from[c];
    }
  }

  BRITTLE_INLINE static void mirror(const Block<Scalar>& b) {
    alignas(64) Scalar turned[kBlock][kPanel][kPanel];
    for (int j = 0; j < b.column_tiles; ++j) {
      const int last_row = b.diagonal ? j : b.row_tiles;  // the diagonal's tiles are whole
      for (int i = 0; i < last_row; ++i) turn(b.tile(i, j), turned[i]);
      for (int c = 0; c < kPanel && j * kPanel + c < b.columns; ++c) {
        Scalar* const out = b.mirrored + (j * kPanel + c) * b.row_stride;
        for (int i = 0; i < last_row; ++i) {
          const int row = i * kPanel;
          const int count = b.rows - row < kPanel ? b.rows - row : kPanel;
          put(turned[i][c], out + row * b.stride, count, b.stride, b.stream);
        }
      }
    }
  }

  BRITTLE_INLINE static void turn(const Scalar* __restrict tile, Scalar (*__restrict to)[kPanel]) {
#if defined(__SSE2__)
    if constexpr (sizeof(Scalar) == 4) {
      for (int r = 0; r < kPanel; r += 4) {
        for (int c = 0; c < kPanel; c += 4) {
          transpose4(tile + r * kPanel + c, kPanel, &to[c][r], kPanel);
        }
      }
      return;
    }
#endif
    for (int r = 0; r < kPanel; ++r) {
      for (int c = 0; c < kPanel; ++c) to[c][r] = tile[r * kPanel + c];
    }
  }
};

}  // namespace brittle::cosine
