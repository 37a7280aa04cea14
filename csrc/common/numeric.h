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

// What the kernels need to know of an element type:
//   Compute            the type its arithmetic is done in
//   Bits               a signed integer as wide as the stored value
//   Unsigned           the same without sign
//   kLargest           the bits of the largest finite number
//   widen, narrow      storage -> Compute, exact; Compute -> storage, to nearest even
template <class T>
struct Real;

template <>
struct Real<float> {
  using Compute = float;
  using Bits = int32_t;
  using Unsigned = uint32_t;
  static constexpr uint32_t kLargest = 0x7f7fffffu;
  BRITTLE_HD static float widen(float value) { return value; }
  BRITTLE_HD static float narrow(float value) { return value; }
};

template <>
struct Real<double> {
  using Compute = double;
  using Bits = int64_t;
  using Unsigned = uint64_t;
  static constexpr uint64_t kLargest = 0x7fefffffffffffffu;
  BRITTLE_HD static double widen(double value) { return value; }
  BRITTLE_HD static double narrow(double value) { return value; }
};

template <>
struct Real<bfloat16> {
  using Compute = float;
  using Bits = int16_t;
  using Unsigned = uint16_t;
  static constexpr uint16_t kLargest = 0x7f7f;
  BRITTLE_HD static float widen(bfloat16 value) {
    return bit_cast<float>(static_cast<uint32_t>(value.raw) << 16);
  }
  BRITTLE_HD static bfloat16 narrow(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
  }
};

template <>
struct Real<float16> {
  using Compute = float;
  using Bits = int16_t;
  using Unsigned = uint16_t;
  static constexpr uint16_t kLargest = 0x7bff;
  BRITTLE_HD static float widen(float16 value) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(value.raw));
#else
    const uint32_t sign = static_cast<uint32_t>(value.raw & 0x8000u) << 16;
    const uint32_t shifted = static_cast<uint32_t>(value.raw & 0x7fffu) << 13;
    const uint32_t normal = shifted + (112u << 23);
    // A subnormal's fraction, put behind a leading one and freed of it again by a subtraction.
    const uint32_t subnormal =
        bit_cast<uint32_t>(bit_cast<float>(shifted + (113u << 23)) - 0x1p-14f);
    uint32_t magnitude = shifted < (1u << 23) ? subnormal : normal;
    magnitude = shifted >= (31u << 23) ? shifted + (224u << 23) : magnitude;  // infinity, NaN
    return bit_cast<float>(sign | magnitude);
#endif
  }
  BRITTLE_HD static float16 narrow(float value) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 puts the unit of a subnormal half (2^-24) at the float's last place: the addition
    // rounds.
    const float small = magnitude < 0x38800000u ? bit_cast<float>(magnitude) : 0.0f;
    const uint32_t subnormal = bit_cast<uint32_t>(small + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return {static_cast<uint16_t>(sign | half)};
#endif
  }
};

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

template <class T>
BRITTLE_HD typename Real<T>::Bits bits_of(T value) {
  return bit_cast<typename Real<T>::Bits>(value);
}

// The largest T that is <= value, as Compute. A limit rounded this way still holds when somebody
// compares a distance with the caller's own double.
template <class T>
BRITTLE_HD typename Real<T>::Compute round_down(double value) {
  using Bits = typename Real<T>::Bits;
  T rounded = Real<T>::narrow(static_cast<typename Real<T>::Compute>(value));
  if (static_cast<double>(Real<T>::widen(rounded)) > value) {
    rounded =
        bit_cast<T>(static_cast<Bits>(bits_of(rounded) - 1));  // value >= 0: one ulp towards zero
  }
  return Real<T>::widen(rounded);
}

template <class T>
BRITTLE_HD typename Real<T>::Compute round_nearest(double value) {
  return Real<T>::widen(Real<T>::narrow(static_cast<typename Real<T>::Compute>(value)));
}

}  // namespace brittle
