// The physical limit of a matrix product: fused multiply-adds on registers alone.
#include <cstdint>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

// Enough independent sums to cover the latency of two units.
float chain(int64_t steps) {
  Vector sum[12], by = {}, plus = {};
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

}  // namespace

// Does `count` multiply-adds of float32, shared out among the threads.
extern "C" float multiply_add(double count, int threads) {
  const auto steps = static_cast<int64_t>(count / (12.0 * (kBytes / sizeof(float)) * threads));
  std::vector<float> found(threads);
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { found[t] = chain(steps); });
  found[0] = chain(steps);
  for (std::thread& thread : others) thread.join();
  float total = 0;
  for (const float f : found) total += f;
  return total;
}
