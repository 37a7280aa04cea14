// The product of two packed panels: what pairwise cosines spend their time on.
//
// A panel holds kPanel rows side by side: element k of row r is at [k * kPanel + r], so that one k
// is one cache line of float32. multiply adds to a tile of kPanel x kPanel, row-major, the products
// of every row of one panel with every row of another. Both sides have the same layout: a matrix
// is packed once, and multiplied with itself.
//
// tile.cpp is compiled once per SIMD level, with the level's own instructions and with fused
// multiply-adds; nothing else is.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace brittle::cosine {

inline constexpr int kPanel = 16;

// How many products a register sums before it is added to the tile. A sum of equal terms errs by
// up to 2^-26 a term, always to the same side: short chains, summed in turn, keep it small.
inline constexpr int kChain = 32;

// The panels' elements are float, double or pairs of bfloat16: two of k side by side for each row,
// depth then counts pairs.
template <class Scalar>
using Multiply = void (*)(const Scalar* a, const Scalar* b, int64_t depth, Scalar* tile);
using MultiplyPairs = void (*)(const uint32_t* a, const uint32_t* b, int64_t depth, float* tile);

struct Tiles {
  Multiply<float> float32;
  Multiply<double> float64;
  MultiplyPairs bfloat16;  // null where the processor has no instruction for it
};

const Tiles& tiles(simd::Level level);

}  // namespace brittle::cosine
