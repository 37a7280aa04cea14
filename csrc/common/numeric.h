// The four element types, and how each is widened for arithmetic and narrowed for storage.
//
// float16 and bfloat16 are stored as bits and computed in float; float and double compute in
// themselves. Narrowing rounds to nearest, ties to even, with identical bits on every SIMD level
// and on CUDA. The conversions are branch-free so that compilers vectorise them, and none of them
// sends a subnormal float through an arithmetic unit, so flush-to-zero mode does not change a
// result.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/host_device.h"
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace brittle {

enum class Dtype { float32, float64, float16, bfloat16, other };

struct float16 {
  uint16_t raw;
};

struct bfloat16 {
  uint16_t raw;
};

template <class To, class From>
BRITTLE_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, value);
}

// What the kernels need to know of an element type T:
//   Compute      the type its arithmetic is done in
//   Word         an unsigned integer as wide as Compute; a stored value's bits travel in it, so
//   that
//                vectors of halves are widened once and stay in lanes of one width to the end
//   kLargest     the bits of the largest finite number
//   from_word    bits -> Compute, exact
//   to_word      Compute -> bits, to nearest even
template <class T>
struct Real;

template <>
struct Real<float> {
  using Compute = float;
  using Word = uint32_t;
  static constexpr Word kLargest = 0x7f7fffffu;
  BRITTLE_HD static float from_word(Word bits) { return bit_cast<float>(bits); }
  BRITTLE_HD static Word to_word(float value) { return bit_cast<Word>(value); }
};

template <>
struct Real<double> {
  using Compute = double;
  using Word = uint64_t;
  static constexpr Word kLargest = 0x7fefffffffffffffu;
  BRITTLE_HD static double from_word(Word bits) { return bit_cast<double>(bits); }
  BRITTLE_HD static Word to_word(double value) { return bit_cast<Word>(value); }
};

template <>
struct Real<bfloat16> {
  using Compute = float;
  using Word = uint32_t;
  static constexpr Word kLargest = 0x7f7fu;
  BRITTLE_HD static float from_word(Word bits) { return bit_cast<float>(bits << 16); }
  BRITTLE_HD static Word to_word(float value) {
    const Word bits = bit_cast<Word>(value);
    const Word rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded;
  }
};

template <>
struct Real<float16> {
  using Compute = float;
  using Word = uint32_t;
  static constexpr Word kLargest = 0x7bffu;
  BRITTLE_HD static float from_word(Word bits) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
    const Word shifted = (bits & 0x7fffu) << 13;
    const Word normal = shifted + (112u << 23);
    // A subnormal's fraction, put behind a leading one and freed of it again by a subtraction.
    const Word subnormal = bit_cast<Word>(bit_cast<float>(shifted + (113u << 23)) - 0x1p-14f);
    Word magnitude = shifted < (1u << 23) ? subnormal : normal;
    magnitude = shifted >= (31u << 23) ? shifted + (224u << 23) : magnitude;  // infinity, NaN
    return bit_cast<float>(((bits & 0x8000u) << 16) | magnitude);
#endif
  }
  BRITTLE_HD static Word to_word(float value) {
#if defined(__CUDA_ARCH__)
    return __half_as_ushort(__float2half_rn(value));
#else
    const Word bits = bit_cast<Word>(value);
    const Word magnitude = bits & 0x7fffffffu;
    const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 puts the unit of a subnormal half (2^-24) at the float's last place: the addition
    // rounds.
    const float small = magnitude < 0x38800000u ? bit_cast<float>(magnitude) : 0.0f;
    const Word subnormal = bit_cast<Word>(small + 0.5f) - 0x3f000000u;
    Word half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return ((bits >> 16) & 0x8000u) | half;
#endif
  }
};

// The stored bits of a value, and back.
BRITTLE_HD uint32_t word_of(float value) {
  return bit_cast<uint32_t>(value);
}
BRITTLE_HD uint64_t word_of(double value) {
  return bit_cast<uint64_t>(value);
}
BRITTLE_HD uint32_t word_of(float16 value) {
  return value.raw;
}
BRITTLE_HD uint32_t word_of(bfloat16 value) {
  return value.raw;
}

template <class T>
BRITTLE_HD T stored_as(typename Real<T>::Word bits) {
  if constexpr (sizeof(T) == sizeof(bits)) {
    return bit_cast<T>(bits);
  } else {
    return {static_cast<uint16_t>(bits)};
  }
}

template <class T>
BRITTLE_HD typename Real<T>::Compute widen(T value) {
  return Real<T>::from_word(word_of(value));
}

// Calls body with a value of the C++ type that stands for `dtype`.
template <class Body>
void visit_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::float32: return body(float{});
    case Dtype::float64: return body(double{});
    case Dtype::float16: return body(float16{});
    case Dtype::bfloat16: return body(bfloat16{});
    case Dtype::other: break;
  }
}

// value rounded to T, as Compute.
template <class T>
BRITTLE_HD typename Real<T>::Compute rounded_to(typename Real<T>::Compute value) {
  return Real<T>::from_word(Real<T>::to_word(value));
}

template <class T>
BRITTLE_HD typename Real<T>::Compute round_nearest(double value) {
  return rounded_to<T>(static_cast<typename Real<T>::Compute>(value));
}

// The largest T that is <= value (which is >= 0), as Compute. A limit rounded this way still holds
// when somebody compares a distance with the caller's own double.
template <class T>
BRITTLE_HD typename Real<T>::Compute round_down(double value) {
  const auto bits = Real<T>::to_word(static_cast<typename Real<T>::Compute>(value));
  const bool above = static_cast<double>(Real<T>::from_word(bits)) > value;
  return Real<T>::from_word(bits - (above ? 1 : 0));
}

// NaN stays NaN.
template <class Compute>
BRITTLE_HD Compute clamp(Compute value, Compute lo, Compute hi) {
  value = value < lo ? lo : value;
  return hi < value ? hi : value;
}

}  // namespace brittle
