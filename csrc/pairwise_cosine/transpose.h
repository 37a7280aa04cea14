// Tiles turned over: where rows become panels, and where a tile is stored a second time.
#pragma once

#include <cstdint>

#include "common/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace brittle::cosine {

#if defined(__SSE2__)
// The transpose of 4 x 4 words, whose rows lie `stride` apart and start at multiples of 16 bytes.
template <class Word>
BRITTLE_INLINE void transpose4(const Word* from, int64_t stride, Word* to, int64_t to_stride) {
  const auto row = [&](int i) {
    return _mm_load_ps(reinterpret_cast<const float*>(from + i * stride));
  };
  __m128 a = row(0), b = row(1), c = row(2), d = row(3);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  const auto put = [&](int i, __m128 line) {
    _mm_store_ps(reinterpret_cast<float*>(to + i * to_stride), line);
  };
  put(0, a);
  put(1, b);
  put(2, c);
  put(3, d);
}
#endif

}  // namespace brittle::cosine
