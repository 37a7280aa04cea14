#pragma once

#include <cstdint>

namespace brittle {

// The sum over words [begin, end) of (bits(f(word)) + 1) * (2 word + 1) mod 2^64, f by name, at the
// SIMD level in use. Odd multipliers: no single difference goes unseen.
uint64_t domain_hash(int function, uint64_t begin, uint64_t end);

}  // namespace brittle
