// Many Philox blocks at once on the CPU.
//
// The ten rounds are two 32 x 32 -> 64 bit products each. Compilers do not find the widening
// multiply for them, so the two wide levels are written out: blocks sit in 64-bit lanes, even
// blocks in one register and odd ones in another, whose low halves are the words; the high halves
// carry rubbish that the multiply ignores. Integer arithmetic: every level gives the same bits.
#pragma once

#include <cstdint>

#include "common/philox.h"
#include "common/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace brittle {

// Words of consecutive blocks, word k of block b at word[k][b].
struct PhiloxTile {
  static constexpr int kBlocks = 256;
  alignas(64) uint32_t word[4][kBlocks];
};

namespace philox_cpu {

inline void fill_plain(PhiloxTile& tile, uint32_t block, int blocks, uint64_t seed, int64_t id,
                       uint32_t draw) {
  for (int b = 0; b < blocks; ++b) {
    const Philox4 random = philox_block(seed, id, draw, block + static_cast<uint32_t>(b));
    for (int k = 0; k < 4; ++k) tile.word[k][b] = random.word[k];
  }
}

#if defined(__x86_64__)

__attribute__((target("avx2"))) inline void fill_v3(PhiloxTile& tile, uint32_t block, int blocks,
                                                    uint64_t seed, int64_t id, uint32_t draw) {
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  const uint64_t sample = static_cast<uint64_t>(id);
  for (int b = 0; b < blocks; b += 8) {
    __m256i c0[2], c1[2], c2[2], c3[2];
    for (int half = 0; half < 2; ++half) {
      const uint32_t first = block + static_cast<uint32_t>(b + half);
      c0[half] = _mm256_set_epi64x(first + 6u, first + 4u, first + 2u, first);
      c1[half] = _mm256_set1_epi64x(draw);
      c2[half] = _mm256_set1_epi64x(static_cast<uint32_t>(sample));
      c3[half] = _mm256_set1_epi64x(static_cast<uint32_t>(sample >> 32));
    }
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const __m256i k0 = _mm256_set1_epi64x(key0), k1 = _mm256_set1_epi64x(key1);
      for (int half = 0; half < 2; ++half) {
        const __m256i p0 = _mm256_mul_epu32(c0[half], m0), p1 = _mm256_mul_epu32(c2[half], m1);
        c0[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1[half]), k0);
        c2[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3[half]), k1);
        c1[half] = p1;
        c3[half] = p0;
      }
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    const __m256i* words[4] = {c0, c1, c2, c3};
    for (int k = 0; k < 4; ++k) {
      const __m256i joined =
          _mm256_blend_epi32(words[k][0], _mm256_slli_epi64(words[k][1], 32), 0xaa);
      _mm256_store_si256(reinterpret_cast<__m256i*>(tile.word[k] + b), joined);
    }
  }
}

__attribute__((target("avx512f"))) inline void fill_v4(PhiloxTile& tile, uint32_t block, int blocks,
                                                       uint64_t seed, int64_t id, uint32_t draw) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i low = _mm512_set1_epi64(0xffffffff);
  const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
  const uint64_t sample = static_cast<uint64_t>(id);
  __m512i keys0[10], keys1[10];
  for (uint32_t round = 0; round < 10; ++round) {
    keys0[round] = _mm512_set1_epi64(static_cast<uint32_t>(seed) + round * 0x9E3779B9u);
    keys1[round] = _mm512_set1_epi64(static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u);
  }
  for (int b = 0; b < blocks; b += 16) {
    __m512i c0[2], c1[2], c2[2], c3[2];
    for (int half = 0; half < 2; ++half) {
      const uint32_t first = block + static_cast<uint32_t>(b + half);
      c0[half] = _mm512_and_si512(_mm512_add_epi64(_mm512_set1_epi64(first), even), low);
      c1[half] = _mm512_set1_epi64(draw);
      c2[half] = _mm512_set1_epi64(static_cast<uint32_t>(sample));
      c3[half] = _mm512_set1_epi64(static_cast<uint32_t>(sample >> 32));
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      for (int half = 0; half < 2; ++half) {
        constexpr int kXorOfThree = 0x96;
        const __m512i p0 = _mm512_mul_epu32(c0[half], m0), p1 = _mm512_mul_epu32(c2[half], m1);
        c0[half] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[half], keys0[round],
                                             kXorOfThree);
        c2[half] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[half], keys1[round],
                                             kXorOfThree);
        c1[half] = p1;
        c3[half] = p0;
      }
    }
    const __m512i* words[4] = {c0, c1, c2, c3};
    for (int k = 0; k < 4; ++k) {
      const __m512i joined =
          _mm512_mask_mov_epi32(words[k][0], 0xaaaa, _mm512_slli_epi64(words[k][1], 32));
      _mm512_store_si512(tile.word[k] + b, joined);
    }
  }
}

#endif

}  // namespace philox_cpu

// Fills the first `blocks` blocks of the tile, and up to 15 more.
inline void fill_philox(simd::Level level, PhiloxTile& tile, uint32_t block, int blocks,
                        uint64_t seed, int64_t id, uint32_t draw) {
#if defined(__x86_64__)
  if (level == simd::Level::v4) {
    return philox_cpu::fill_v4(tile, block, blocks, seed, id, draw);
  }
  if (level == simd::Level::v3) {
    return philox_cpu::fill_v3(tile, block, blocks, seed, id, draw);
  }
#endif
  philox_cpu::fill_plain(tile, block, blocks, seed, id, draw);
}

}  // namespace brittle
