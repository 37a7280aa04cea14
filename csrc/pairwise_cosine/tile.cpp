// DESIGN. A tile of 16 x 16 is 16 registers of AVX-512: one load and 16 broadcasts feed 16 fused
// multiply-adds, and a register is needed again only 16 instructions later, which covers their
// latency on processors with one or two such units. A step reads 128 bytes for 512 operations, so
// panels may come from the second-level cache. AVX2 and SSE do the same rows in groups, as many as
// their 16 registers hold. At the end of a chain the registers are added to the tile, which stays
// in the first-level cache.

#include "pairwise_cosine/tile.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace brittle::cosine::BRITTLE_TILE_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
constexpr int kRows = 16, kDoubleRows = 8;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
constexpr int kRows = 6, kDoubleRows = 2;
#else
constexpr int kBytes = 16;
constexpr int kRows = 2, kDoubleRows = 1;
#endif

// Rows [first, first + rows) of the tile, one chain.
template <class Scalar, int rows>
inline __attribute__((always_inline)) void add_rows(const Scalar* __restrict a,
                                                    const Scalar* __restrict b, int depth,
                                                    Scalar* __restrict tile) {
  typedef Scalar Vector __attribute__((vector_size(kBytes), aligned(kBytes)));
  constexpr int kLanes = kBytes / sizeof(Scalar);
  constexpr int kVectors = kPanel / kLanes;
  const Vector* right = reinterpret_cast<const Vector*>(b);
  Vector sum[rows][kVectors];
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector{};
  }
#pragma GCC unroll 4
  for (int k = 0; k < depth; ++k) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sum[r][v] += a[r] * right[v];
    }
    a += kPanel;
    right += kVectors;
  }
  Vector* to = reinterpret_cast<Vector*>(tile);
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) to[r * kVectors + v] += sum[r][v];
  }
}

template <class Scalar, int rows>
inline __attribute__((always_inline)) void add_all_rows(const Scalar* a, const Scalar* b, int depth,
                                                        Scalar* tile) {
  constexpr int kWhole = kPanel / rows;
  for (int g = 0; g < kWhole; ++g) {
    add_rows<Scalar, rows>(a + g * rows, b, depth, tile + g * rows * kPanel);
  }
  constexpr int kLeft = kPanel - kWhole * rows;
  if constexpr (kLeft > 0) {
    add_rows<Scalar, kLeft>(a + kWhole * rows, b, depth, tile + kWhole * rows * kPanel);
  }
}

// Adds a sum over one block's depth to the tile. Not straight to the tile, which many blocks meet
// in: see kChain.
template <class Scalar>
inline __attribute__((always_inline)) void add_tile(const Scalar* __restrict sum,
                                                    Scalar* __restrict tile) {
  for (int i = 0; i < kPanel * kPanel; ++i) tile[i] += sum[i];
}

template <class Scalar>
void multiply(const Scalar* a, const Scalar* b, int64_t depth, Scalar* tile) {
  constexpr int rows = sizeof(Scalar) == sizeof(float) ? kRows : kDoubleRows;
  alignas(64) Scalar sum[kPanel * kPanel] = {};
  for (int64_t done = 0; done < depth; done += kChain) {
    const int64_t left = depth - done;
    const int length = left < kChain ? static_cast<int>(left) : kChain;
    add_all_rows<Scalar, rows>(a + done * kPanel, b + done * kPanel, length, sum);
  }
  add_tile(sum, tile);
}

#if defined(__AVX512BF16__)
void multiply_pairs(const uint32_t* a, const uint32_t* b, int64_t depth, float* tile) {
  alignas(64) float total[kPanel * kPanel] = {};
  __m512 sum[kPanel];
  for (int64_t done = 0; done < depth; done += kChain) {
    const int64_t left = depth - done;
    const int length = left < kChain ? static_cast<int>(left) : kChain;
#pragma GCC unroll 16
    for (int r = 0; r < kPanel; ++r) sum[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int k = 0; k < length; ++k) {
      const __m512bh right = (__m512bh)_mm512_load_si512(b);
#pragma GCC unroll 16
      for (int r = 0; r < kPanel; ++r) {
        sum[r] =
            _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r])), right);
      }
      a += kPanel;
      b += kPanel;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kPanel; ++r) {
      float* const row = total + r * kPanel;
      _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), sum[r]));
    }
  }
  add_tile(total, tile);
}
#endif

}  // namespace

extern const Tiles kTiles;
const Tiles kTiles = {multiply<float>, multiply<double>,
#if defined(__AVX512BF16__)
                      multiply_pairs
#else
                      nullptr
#endif
};

}  // namespace brittle::cosine::BRITTLE_TILE_LEVEL
