// The physical limit of a matrix product: fused multiply-adds on registers alone, by one core.
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kSums = 12;  // enough independent ones to cover the latency of two units
typedef float Vector __attribute__((vector_size(kBytes)));

}  // namespace

// Does about `count` multiply-adds of float32.
extern "C" float multiply_add(double count) {
  const auto steps = static_cast<int64_t>(count / (kSums * (kBytes / sizeof(float))));
  Vector sum[kSums], by = {}, plus = {};
  by += 0.999f;
  plus += 1e-3f;
  for (Vector& s : sum) s = plus;
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 12
    for (Vector& s : sum) s = s * by + plus;
  }
  float total = 0;
  for (const Vector& s : sum) total += s[0];
  return total;
}
