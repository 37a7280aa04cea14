// Philox4x32-10: random numbers as a function of (seed, sample id, draw, element) and nothing else.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Stream 1, whose bits never
// change:
//   key     = (seed low, seed high)
//   counter = (element / 4, draw, sample id low, sample id high)
// where `element` is the row-major index inside one sample and the four words of a block serve
// elements 4b .. 4b+3. Draws with the top bit set belong to the attacks' random starts; all others
// belong to the callers of the noise functions, so the two never share a number.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace brittle {

struct Philox4 {
  uint32_t word[4];
};

BRITTLE_HD Philox4 philox4x32(Philox4 counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The block of four words that serves elements 4 * block .. 4 * block + 3 of one sample.
BRITTLE_HD Philox4 philox_block(uint64_t seed, int64_t sample_id, uint32_t draw, uint32_t block) {
  const uint64_t id = static_cast<uint64_t>(sample_id);
  return philox4x32({{block, draw, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)}},
                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Uniform on [-1, 1) in steps of 2^-23, from the top 24 bits; exact in float and in double.
template <class Compute>
BRITTLE_HD Compute symmetric_uniform(uint32_t word) {
  const int32_t centred = static_cast<int32_t>(word >> 8) - (1 << 23);
  return static_cast<Compute>(centred) * static_cast<Compute>(0x1p-23);
}

}  // namespace brittle
