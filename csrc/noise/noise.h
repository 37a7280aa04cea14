// noise: random numbers drawn, scaled, applied and clamped in one pass.
//
//   noise      out <- clamp(x with noise of one kind): a function of (seed, sample id, draw,
//   element) in_ball    out <- clamp(x + a uniform point of the L2 or L1 ball, or of its surface)
//
// Every number comes from one 32-bit Philox word of its own (common/philox.h), the Gaussian ones
// from two words shared by two neighbours. Only IEEE add, multiply, divide and square root are
// used, no fused multiply-add and no libm, so every SIMD level and every device gives the same
// bits; these bits are stream 1 and do not change.
//
// Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Stat. 1958.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/device.h"
#include "common/host_device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/philox.h"

namespace brittle {

enum class Noise {
  gaussian,         // x + scale z
  uniform,          // x + scale u, u on [-1, 1)
  laplace,          // x + scale l, density exp(-|l|) / 2
  speckle,          // x + x scale z
  shot,             // Poisson(scale x) / scale
  salt_and_pepper,  // lo or hi, each with probability scale / 2
  dropout,          // 0 with probability scale, else x / (1 - scale)
};
inline constexpr int kNoiseKinds = 7;

// -ln((2j + 1) / 2^31) for the odd 31-bit number 2j + 1 made of a word's lower 31 bits: the middles
// of 2^30 equal cells, so neither end of (0, 1) is ever reached and the largest value is 21.5.
// Relative error 2e-7. The polynomial is a minimax fit of (ln(1 + f) - f + f^2 / 2) / f^3 on
// [sqrt(1/2) - 1, sqrt(2) - 1].
BRITTLE_HD float negative_log(uint32_t word) {
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const int32_t odd = static_cast<int32_t>((word & 0x7fffffffu) | 1u);
  const int32_t bits = bit_cast<int32_t>(static_cast<float>(odd)) - kSqrtHalf;
  const float exponent = static_cast<float>((bits >> 23) - 31);
  const float f = bit_cast<float>((bits & 0x7fffff) + kSqrtHalf) - 1.0f;
  float p = 0x1.852b3p-4f;
  p = p * f - 0x1.22da7p-3f;
  p = p * f + 0x1.2bf3dap-3f;
  p = p * f - 0x1.53a11p-3f;
  p = p * f + 0x1.995172p-3f;
  p = p * f - 0x1.0002f6p-2f;
  p = p * f + 0x1.555584p-2f;
  const float square = f * f;
  return exponent * -0x1.62e43p-1f - (f - (0.5f * square - f * square * p));
}

struct SineCosine {
  float sine, cosine;
};

// Of a uniform angle: the quadrant from the word's top two bits, the angle inside it, in
// [-pi/4, pi/4), from the other thirty. Absolute error 9e-8.
BRITTLE_HD SineCosine sine_cosine(uint32_t word) {
  const float angle = static_cast<float>(static_cast<int32_t>(word << 2)) * 0x1.921fb6p-32f;
  const float square = angle * angle;
  float sine = -0x1.99076cp-13f;
  sine = sine * square + 0x1.11063p-7f;
  sine = sine * square - 0x1.55554p-3f;
  sine = angle + angle * square * sine;
  float cosine = -0x1.64257ep-10f;
  cosine = cosine * square + 0x1.553cecp-5f;
  cosine = cosine * square - 0x1.ffffap-2f;
  cosine = 1.0f + square * cosine;
  const uint32_t quadrant = word >> 30;
  const bool swap = (quadrant & 1u) != 0;
  const uint32_t cosine_sign = ((quadrant + 1u) & 2u) << 30;
  const uint32_t sine_sign = (quadrant & 2u) << 30;
  return {bit_cast<float>(bit_cast<uint32_t>(swap ? cosine : sine) ^ sine_sign),
          bit_cast<float>(bit_cast<uint32_t>(swap ? sine : cosine) ^ cosine_sign)};
}

// Two independent standard normal numbers; the largest possible is 6.56.
struct GaussianPair {
  float first, second;
};

BRITTLE_HD GaussianPair gaussian_pair(uint32_t word0, uint32_t word1) {
  const float radius = std::sqrt(2.0f * negative_log(word0));
  const SineCosine turn = sine_cosine(word1);
  return {radius * turn.cosine, radius * turn.sine};
}

// exp(-y) for 0 <= y <= 700, relative error 1e-15: 2^-n exp(-r), |r| <= ln(2) / 2, by Taylor's
// series.
BRITTLE_HD double exp_negative(double y) {
  const int n = static_cast<int>(y * 0x1.71547652b82fep+0 + 0.5);
  const double r = (y - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;
  double sum = 1.0 - r * (1.0 / 13);
  sum = 1.0 - r * sum * (1.0 / 12);
  sum = 1.0 - r * sum * (1.0 / 11);
  sum = 1.0 - r * sum * (1.0 / 10);
  sum = 1.0 - r * sum * (1.0 / 9);
  sum = 1.0 - r * sum * (1.0 / 8);
  sum = 1.0 - r * sum * (1.0 / 7);
  sum = 1.0 - r * sum * (1.0 / 6);
  sum = 1.0 - r * sum * (1.0 / 5);
  sum = 1.0 - r * sum * (1.0 / 4);
  sum = 1.0 - r * sum * (1.0 / 3);
  sum = 1.0 - r * sum * (1.0 / 2);
  sum = 1.0 - r * sum;
  return sum * bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(1023 - n)) << 52);
}

// Poisson numbers by inversion from one uniform word: the probabilities of the outcomes, from a
// first one outwards, are taken off the uniform number until it is used up. The first is 0 for
// small rates, else the mode, from where it takes about sqrt(rate) outcomes. None rarer than 2^-32
// is ever drawn.
//
// The probability of the first outcome. For the mode it is Stirling's series; rate / mode is in [1,
// 5/4), so ln(rate / mode) is a short series too. Relative error 1e-8.
inline constexpr double kPoissonNegligible = 0x1p-45;
// Above this mean a search would not end in reasonable time, and infinity has none: no noise.
inline constexpr double kPoissonLargest = 0x1p30;

struct PoissonStart {
  double first, probability;
};

BRITTLE_HD PoissonStart poisson_start(double rate) {
  constexpr double kSmall = 4.0;
  const bool small = !(rate >= kSmall);
  const double large = small ? kSmall : (rate < kPoissonLargest ? rate : kPoissonLargest);
  const double mode = static_cast<double>(static_cast<int32_t>(large));
  const double inverse = 1.0 / mode;
  const double d = (large - mode) * inverse;
  double series = 1.0 / 13 - d * (1.0 / 14);  // (ln(1 + d) - d) / -d^2
  series = 1.0 / 12 - d * series;
  series = 1.0 / 11 - d * series;
  series = 1.0 / 10 - d * series;
  series = 1.0 / 9 - d * series;
  series = 1.0 / 8 - d * series;
  series = 1.0 / 7 - d * series;
  series = 1.0 / 6 - d * series;
  series = 1.0 / 5 - d * series;
  series = 1.0 / 4 - d * series;
  series = 1.0 / 3 - d * series;
  series = 1.0 / 2 - d * series;
  const double square = inverse * inverse;
  const double stirling =
      inverse * (1.0 / 12 - square * (1.0 / 360 - square * (1.0 / 1260 - square * (1.0 / 1680))));
  const double power =
      exp_negative(small ? (rate > 0.0 ? rate : 0.0) : mode * d * d * series + stirling);
  const double scale = 0x1.9884533d43651p-2 * (1.0 / std::sqrt(mode));
  return {small ? 0.0 : mode, small ? power : power * scale};
}

BRITTLE_HD double poisson_search(double rate, uint32_t word, PoissonStart start) {
  if (!(rate > 0.0)) return 0.0;
  if (rate > kPoissonLargest) return rate;
  double left = (static_cast<double>(word) + 0.5) * 0x1p-32 - start.probability;
  double up = start.probability, down = start.probability;
  double above = start.first, below = start.first;
  const double inverse_rate = 1.0 / rate;
  while (left > 0.0) {
    above += 1.0;
    up *= rate * (1.0 / above);
    down *= below * inverse_rate;  // 0 from below 0 on
    below -= 1.0;
    const double after_up = left - up;
    left = after_up - down;
    if (left <= 0.0) return after_up <= 0.0 ? above : below;
    // Rounding has left a remainder that no outcome claims.
    if (up < kPoissonNegligible && down < kPoissonNegligible && above > rate) break;
  }
  return start.first;
}

// The numbers of one row, in the type the arithmetic is done in.
template <class Compute>
struct NoiseNumbers {
  Compute scale, lo, hi;
  uint32_t threshold;  // salt_and_pepper: words of salt; dropout: words that drop
};

template <class T>
BRITTLE_HD NoiseNumbers<typename Real<T>::Compute> noise_numbers(Noise kind, double scale,
                                                                 double lo, double hi) {
  using Compute = typename Real<T>::Compute;
  NoiseNumbers<Compute> n{static_cast<Compute>(scale), round_nearest<T>(lo), round_nearest<T>(hi),
                          0};
  if (kind == Noise::salt_and_pepper) {
    n.threshold = static_cast<uint32_t>(scale * 0x1p31 + 0.5);
  } else if (kind == Noise::dropout) {
    const double words = scale * 0x1p32 + 0.5;
    n.threshold = words < 0x1p32 ? static_cast<uint32_t>(words) : 0xffffffffu;
    n.scale = static_cast<Compute>(1.0 / (1.0 - scale));
  }
  return n;
}

// What a kind draws for one element: a float made of words, or the word itself.
BRITTLE_HD constexpr bool draws_word(Noise kind) {
  return kind == Noise::shot || kind == Noise::salt_and_pepper || kind == Noise::dropout;
}
BRITTLE_HD constexpr bool draws_gaussian(Noise kind) {
  return kind == Noise::gaussian || kind == Noise::speckle;
}

BRITTLE_HD float laplace_number(uint32_t word) {
  const float magnitude = negative_log(word);
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | (word & 0x80000000u));
}

template <class Compute>
struct Noisy {
  Compute value;   // before clamping
  Compute factor;  // its derivative with respect to x
};

template <Noise kind, class Compute>
BRITTLE_HD Noisy<Compute> noisy(Compute x, uint32_t draw, const NoiseNumbers<Compute>& n) {
  if constexpr (kind == Noise::shot) {
    const double rate = static_cast<double>(n.scale) * static_cast<double>(x);
    const Compute value =
        static_cast<Compute>(poisson_search(rate, draw, poisson_start(rate))) / n.scale;
    return {x != x ? x : value, Compute(1)};
  } else if constexpr (kind == Noise::salt_and_pepper) {
    // Chosen on the bits: with conditional expressions the compiler clamps each outcome on a branch
    // of its own, and the loop is not vectorised.
    using Word = typename Real<Compute>::Word;
    const Word salt = draw < n.threshold ? ~Word(0) : Word(0);
    const Word pepper = ~draw < n.threshold ? ~Word(0) : Word(0);
    const Word value =
        (word_of(x) & ~(salt | pepper)) | (word_of(n.lo) & salt) | (word_of(n.hi) & pepper);
    return {bit_cast<Compute>(value), bit_cast<Compute>(word_of(Compute(1)) & ~(salt | pepper))};
  } else if constexpr (kind == Noise::dropout) {
    const Compute factor = draw < n.threshold ? Compute(0) : n.scale;
    return {draw < n.threshold ? Compute(0) : x * factor, factor};
  } else if constexpr (kind == Noise::speckle) {
    const Compute amount = n.scale * static_cast<Compute>(bit_cast<float>(draw));
    return {x + x * amount, Compute(1) + amount};
  } else {
    return {x + n.scale * static_cast<Compute>(bit_cast<float>(draw)), Compute(1)};
  }
}

template <Noise kind, class T>
BRITTLE_HD T noise_element(T x, uint32_t draw, const NoiseNumbers<typename Real<T>::Compute>& n) {
  const auto value = clamp(noisy<kind>(widen(x), draw, n).value, n.lo, n.hi);
  return stored_as<T>(Real<T>::to_word(value));
}

// The gradient passes where the value was not clamped.
template <Noise kind, class T>
BRITTLE_HD T noise_gradient(T grad, T x, uint32_t draw,
                            const NoiseNumbers<typename Real<T>::Compute>& n) {
  using Compute = typename Real<T>::Compute;
  const Noisy<Compute> result = noisy<kind>(widen(x), draw, n);
  const bool inside = n.lo <= result.value && result.value <= n.hi;
  return stored_as<T>(Real<T>::to_word(inside ? widen(grad) * result.factor : Compute(0)));
}

// The four draws of a block, as the bits that noisy() takes.
template <Noise kind>
BRITTLE_HD Philox4 block_draws(const Philox4& words) {
  if constexpr (draws_word(kind)) {
    return words;
  } else if constexpr (draws_gaussian(kind)) {
    const GaussianPair front = gaussian_pair(words.word[0], words.word[1]);
    const GaussianPair back = gaussian_pair(words.word[2], words.word[3]);
    return {{bit_cast<uint32_t>(front.first), bit_cast<uint32_t>(front.second),
             bit_cast<uint32_t>(back.first), bit_cast<uint32_t>(back.second)}};
  } else {
    Philox4 draws;
    for (int w = 0; w < 4; ++w) {
      const float number = kind == Noise::laplace ? laplace_number(words.word[w])
                                                  : symmetric_uniform<float>(words.word[w]);
      draws.word[w] = bit_cast<uint32_t>(number);
    }
    return draws;
  }
}

// Calls body with the kind as a compile-time constant.
template <class Body>
void visit_noise(Noise kind, const Body& body) {
  switch (kind) {
    case Noise::gaussian: return body(std::integral_constant<Noise, Noise::gaussian>{});
    case Noise::uniform: return body(std::integral_constant<Noise, Noise::uniform>{});
    case Noise::laplace: return body(std::integral_constant<Noise, Noise::laplace>{});
    case Noise::speckle: return body(std::integral_constant<Noise, Noise::speckle>{});
    case Noise::shot: return body(std::integral_constant<Noise, Noise::shot>{});
    case Noise::salt_and_pepper:
      return body(std::integral_constant<Noise, Noise::salt_and_pepper>{});
    case Noise::dropout: return body(std::integral_constant<Noise, Noise::dropout>{});
  }
}

// ---- in_ball: a direction of unit length, times a radius. Gaussian numbers have a uniform
// direction in L2, Laplace numbers in L1; U^(1/D) is the radius of a uniform point of the ball. A
// row's length is summed in one fixed order on every device: sixteen lanes down each tile of 1024
// elements, the lanes by halving, the tiles one after the other; in double.

inline constexpr int kBallTile = 1024;
inline constexpr int kBallLanes = 16;

template <int norm>
BRITTLE_HD constexpr Noise ball_numbers() {
  return norm == 2 ? Noise::gaussian : Noise::laplace;
}

template <int norm>
BRITTLE_HD double ball_term(float number) {
  const double wide = static_cast<double>(number);
  return norm == 2 ? wide * wide : std::fabs(wide);
}

// What each of a row's numbers is multiplied by. The radius has a block of its own, the last one,
// and stays a millionth inside eps, to make up for the rounding of the elements.
template <int norm>
BRITTLE_HD_CALL double ball_factor(double total, double eps, bool surface, int64_t elements,
                                   uint64_t seed, int64_t id, uint32_t draw) {
  const double length = norm == 2 ? std::sqrt(total) : total;
  if (!(length > 0.0)) return 0.0;
  double radius = 1.0 - 0x1p-20;
  if (!surface) {
    const float drawn = negative_log(philox_block(seed, id, draw, 0xffffffffu).word[0]);
    radius *= exp_negative(static_cast<double>(drawn) / static_cast<double>(elements));
  }
  return eps * radius / length;
}

// ---- the operators, checked by the front (noise.cpp), walked by one of the two backends ----

struct NoiseOp {
  const void* grad;  // null: forward
  const void* x;
  void* out;
  Layout<3> layout;  // grad (or x), x, out; rows kept, row-major order
  Dtype dtype;
  Noise kind;
  RowValue scale;
  const int64_t* sample_ids;  // [N], or null for 0 .. N - 1
  uint64_t seed;
  uint32_t draw;
  double lo, hi;
};

struct BallOp {
  const void* x;
  void* out;
  Layout<2> layout;  // x, out; rows kept, row-major order
  Dtype dtype;
  int norm;  // 1 or 2
  bool surface;
  RowValue eps;
  const int64_t* sample_ids;
  uint64_t seed;
  uint32_t draw;
  double lo, hi;
};

void noise_cpu(const NoiseOp& op, const Execution& execution);
void noise_cuda(const NoiseOp& op, const Execution& execution);
void in_ball_cpu(const BallOp& op, const Execution& execution);
void in_ball_cuda(const BallOp& op, const Execution& execution);

// ---- the front: what the doors call. Throws std::invalid_argument before any work. ----

// Forward where grad is null; else the gradient with respect to x.
void noise(const View* grad, const View& x, int64_t kind, const RowArgument& scale, int64_t seed,
           const View* sample_ids, int64_t draw, double lo, double hi, const View& out,
           const Execution& execution);

void in_ball(const View& x, const RowArgument& eps, int64_t norm, bool surface, int64_t seed,
             const View* sample_ids, int64_t draw, double lo, double hi, const View& out,
             const Execution& execution);

}  // namespace brittle
