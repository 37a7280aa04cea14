// One body of code, compiled once per instruction-set level, chosen when called.
//
// A body is a struct with an always-inline static run(); simd::call<Body>(...) runs the copy
// compiled for the level in use. Contraction is off in every copy, so all levels give the same
// bits. BRITTLE_SIMD=v4|v3|baseline forces a level; it is read at each call so that a test can
// change it.
#pragma once

#include <cstdlib>
#include <cstring>

#include "common/check.h"

#define BRITTLE_INLINE inline __attribute__((always_inline))

namespace brittle::simd {

enum class Level { baseline, v3, v4 };

inline const char* name(Level level) {
  return level == Level::v4 ? "v4" : level == Level::v3 ? "v3" : "baseline";
}

inline Level best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Level::v4;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
      __builtin_cpu_supports("fma")) {
    return Level::v3;
  }
#endif
  return Level::baseline;
}

inline Level in_use() {
  static const Level supported = best();
  const char* forced = std::getenv("BRITTLE_SIMD");
  if (forced == nullptr || *forced == '\0') return supported;
  for (Level level : {Level::baseline, Level::v3, Level::v4}) {
    if (std::strcmp(forced, name(level)) != 0) continue;
    if (level > supported) {
      fail("BRITTLE_SIMD", "this processor supports up to ", name(supported), "; got ", forced);
    }
    return level;
  }
  fail("BRITTLE_SIMD", "expected v4, v3 or baseline; got ", forced);
}

template <class Body, class... Args>
struct Versions {
  static void baseline(Args... args) { Body::run(args...); }
#if defined(__x86_64__)
  __attribute__((target("arch=x86-64-v3"))) static void v3(Args... args) { Body::run(args...); }
  __attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) static void v4(Args... args) {
    Body::run(args...);
  }
#endif
};

template <class Body, class... Args>
void call(Level level, Args... args) {
  using V = Versions<Body, Args...>;
#if defined(__x86_64__)
  if (level == Level::v4) return V::v4(args...);
  if (level == Level::v3) return V::v3(args...);
#endif
  V::baseline(args...);
}

}  // namespace brittle::simd
