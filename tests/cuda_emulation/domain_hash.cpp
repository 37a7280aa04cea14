#include "domain_hash.h"

#include "common/simd.h"
#include "noise/noise.h"

namespace brittle {
namespace {

enum Function { kUniform, kNegativeLog, kSine, kCosine, kGaussianFirst, kGaussianSecond };

template <int function>
struct Hash {
  BRITTLE_INLINE static void run(uint64_t begin, uint64_t end, uint64_t* total) {
    uint64_t sum = 0;
    for (uint64_t i = begin; i < end; ++i) {
      const uint32_t word = static_cast<uint32_t>(i);
      // The Gaussian's second word runs through all values too, in another order.
      const uint32_t other = word * 2654435761u + 12345u;
      float value = 0;
      if constexpr (function == kUniform) value = symmetric_uniform<float>(word);
      if constexpr (function == kNegativeLog) value = negative_log(word);
      if constexpr (function == kSine) value = sine_cosine(word).sine;
      if constexpr (function == kCosine) value = sine_cosine(word).cosine;
      if constexpr (function == kGaussianFirst) value = gaussian_pair(word, other).first;
      if constexpr (function == kGaussianSecond) value = gaussian_pair(word, other).second;
      sum += (static_cast<uint64_t>(bit_cast<uint32_t>(value)) + 1) * (2 * i + 1);
    }
    *total = sum;
  }
};

}  // namespace

uint64_t domain_hash(int function, uint64_t begin, uint64_t end) {
  uint64_t total = 0;
  const simd::Level level = simd::in_use();
  switch (function) {
    case kUniform: simd::call<Hash<kUniform>>(level, begin, end, &total); break;
    case kNegativeLog: simd::call<Hash<kNegativeLog>>(level, begin, end, &total); break;
    case kSine: simd::call<Hash<kSine>>(level, begin, end, &total); break;
    case kCosine: simd::call<Hash<kCosine>>(level, begin, end, &total); break;
    case kGaussianFirst: simd::call<Hash<kGaussianFirst>>(level, begin, end, &total); break;
    case kGaussianSecond: simd::call<Hash<kGaussianSecond>>(level, begin, end, &total); break;
    default: fail("domain_hash", "unknown function ", function);
  }
  return total;
}

}  // namespace brittle
