// What the CPU's walks share: small tiles for strided operands, so that formulas only ever see unit
// stride, and stores past the cache.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace brittle {

// The elements start[0], start[stride], ... side by side: where they lie, or in `tile`.
template <class T>
const T* gathered(const T* start, int64_t stride, int64_t count, T* tile) {
  if (stride == 1) return start;
  for (int64_t i = 0; i < count; ++i) tile[i] = start[i * stride];
  return tile;
}

template <class T>
void scatter(const T* tile, int64_t count, T* start, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) start[i * stride] = tile[i];
}

constexpr int64_t kStreamBytes = 8 << 20;  // outputs above this bypass the cache

// Copies a tile past the cache: the reader of an output larger than the cache finds nothing there
// anyway, and an ordinary store would first fetch the line it is about to overwrite.
template <class T>
void stream(const T* tile, int64_t count, T* out) {
  int64_t i = 0;
#if defined(__SSE2__)
  constexpr int64_t kLane = 16 / sizeof(T);
  while (i < count && reinterpret_cast<uintptr_t>(out + i) % 16 != 0) {
    out[i] = tile[i];
    ++i;
  }
  for (; i + kLane <= count; i += kLane) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + i)));
  }
#endif
  for (; i < count; ++i) out[i] = tile[i];
}

inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace brittle
