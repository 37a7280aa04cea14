// The rows of a matrix on their way into a product: measured, scaled, and packed as panels
// (tile.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "common/device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/row_sum.h"
#include "common/simd.h"
#include "common/walk.h"
#include "pairwise_cosine/tile.h"
#include "pairwise_cosine/transpose.h"

namespace brittle::cosine {

inline constexpr int kStrip = 64;  // words of each row that are transposed together

// 2^exponent as the product of two numbers in range.
template <class Compute>
struct PowerOfTwo {
  Compute first = 1, second = 1;
  PowerOfTwo() = default;
  explicit PowerOfTwo(int exponent)
      : first(std::ldexp(Compute(1), exponent / 2)),
        second(std::ldexp(Compute(1), exponent - exponent / 2)) {}
};

struct SumOfSquares {
  static constexpr int kSums = 1;
  template <class T, class Scale>
  BRITTLE_HD static void of(const Scale& scale, T x, double (&term)[1]) {
    const double scaled = static_cast<double>(widen(x) * scale.first * scale.second);
    term[0] = scaled * scaled;
  }
};

template <class T>
struct LargestTile {
  BRITTLE_INLINE static void run(const T* __restrict x, int64_t count,
                                 typename Real<T>::Word* largest) {
    using Word = typename Real<T>::Word;
    Word most = *largest;
    for (int64_t i = 0; i < count; ++i) {
      const Word magnitude = word_of(x[i]) & (~Word(0) >> 1);
      most = magnitude > most ? magnitude : most;
    }
    *largest = most;
  }
};

// Stores kPanel rows of kStrip words as panels: word k of row r at to[k * kPanel + r].
template <class Word>
BRITTLE_INLINE void transpose(const Word (*__restrict rows)[kStrip], int64_t count,
                              Word* __restrict to) {
  int64_t k = 0;
#if defined(__SSE2__)
  if constexpr (sizeof(Word) == 4) {
    for (; k + 4 <= count; k += 4) {
      for (int r = 0; r < kPanel; r += 4) {
        transpose4(&rows[r][k], int64_t{kStrip}, to + k * kPanel + r, int64_t{kPanel});
      }
    }
  }
#endif
  for (; k < count; ++k) {
    for (int r = 0; r < kPanel; ++r) to[k * kPanel + r] = rows[r][k];
  }
}

// How a row's elements become words of a panel: scaled, in the type of the sums.
template <class T>
struct Scaled {
  using Element = T;
  using Scalar = typename Real<T>::Compute;
  using Word = Scalar;
  static constexpr int kElements = 1;  // a word
  BRITTLE_INLINE static void convert(const T* __restrict from, int64_t count,
                                     PowerOfTwo<Scalar> scale, Word* __restrict to) {
    for (int64_t i = 0; i < count; ++i) to[i] = widen(from[i]) * scale.first * scale.second;
  }
  static Multiply<Scalar> multiply(const Tiles& tiles) {
    if constexpr (sizeof(Scalar) == sizeof(float)) {
      return tiles.float32;
    } else {
      return tiles.float64;
    }
  }
};

// Pairs of bfloat16, which stay what they are: a power of two changes no significand.
struct Pairs {
  using Element = bfloat16;
  using Scalar = float;
  using Word = uint32_t;
  static constexpr int kElements = 2;
  BRITTLE_INLINE static void convert(const bfloat16* __restrict from, int64_t count,
                                     PowerOfTwo<float> scale, Word* __restrict to) {
    const int64_t pairs = count / 2;
    for (int64_t i = 0; i < pairs; ++i) {
      const Word first = Real<bfloat16>::to_word(widen(from[2 * i]) * scale.first * scale.second);
      const Word second =
          Real<bfloat16>::to_word(widen(from[2 * i + 1]) * scale.first * scale.second);
      to[i] = first | second << 16;
    }
    if (count % 2 != 0) {
      to[pairs] = Real<bfloat16>::to_word(widen(from[count - 1]) * scale.first * scale.second);
    }
  }
  static MultiplyPairs multiply(const Tiles& tiles) { return tiles.bfloat16; }
};

// The rows of a matrix: where they lie, how long they are.
template <class Format>
struct Rows {
  using T = typename Format::Element;
  using Scalar = typename Format::Scalar;
  const T* data;
  int64_t count;
  int64_t row_stride;
  int64_t stride;
  const PowerOfTwo<Scalar>* scale;
  const Scalar* reciprocal;  // of the scaled rows' lengths

  Rows part(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, end - begin, row_stride, stride, scale + begin,
            reciprocal + begin};
  }
};

template <class Format>
struct PackPanel {
  using T = typename Format::Element;
  using Word = typename Format::Word;
  // Words [begin, begin + count) of the rows from `first`; depth in elements.
  BRITTLE_INLINE static void run(const Rows<Format>* rows, int64_t first, int64_t depth,
                                 int64_t begin, int64_t count, Word* to) {
    alignas(64) Word strip[kPanel][kStrip];
    T gather[kStrip * Format::kElements];
    for (int64_t done = 0; done < count; done += kStrip) {
      const int64_t words = std::min<int64_t>(kStrip, count - done);
      const int64_t at = (begin + done) * Format::kElements;
      const int64_t elements = std::min(words * Format::kElements, depth - at);
      for (int r = 0; r < kPanel; ++r) {
        if (first + r >= rows->count) {
          for (int64_t i = 0; i < words; ++i) strip[r][i] = Word(0);
          continue;
        }
        const T* const source = rows->data + (first + r) * rows->row_stride + at * rows->stride;
        // The strip after this one: 16 rows far apart are more than a processor foresees.
        for (int64_t i = 0; i < kStrip * Format::kElements; i += 64 / sizeof(T)) {
          __builtin_prefetch(source + (elements + i) * rows->stride);
        }
        const T* const from = gathered(source, rows->stride, elements, gather);
        Format::convert(from, elements, rows->scale[first + r], strip[r]);
      }
      transpose<Word>(strip, words, to + done * kPanel);
    }
  }
};

// The scales and reciprocal lengths of a matrix's rows.
template <class Format>
class Measured {
  using T = typename Format::Element;
  using Scalar = typename Format::Scalar;
  using Compute = typename Real<T>::Compute;

 public:
  Measured(const View& matrix, simd::Level level, const Execution& execution)
      : matrix_(matrix),
        scale_(new PowerOfTwo<Scalar>[matrix.size[0]]),
        reciprocal_(new Scalar[matrix.size[0]]) {
    const int64_t count = matrix.size[0];
    const auto layout = make_layout<1>({matrix}, {true, false});
    const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, matrix.size[1]));
    parallel_for(execution, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) measure(layout, row, level);
    });
  }

  Rows<Format> rows() const {
    return {static_cast<const T*>(matrix_.data),
            matrix_.size[0],
            matrix_.stride[0],
            matrix_.stride[1],
            scale_.get(),
            reciprocal_.get()};
  }

 private:
  void measure(const Layout<1>& layout, int64_t row, simd::Level level) {
    const Places<T, 1> at{{static_cast<const T*>(matrix_.data)}};
    int exponent = 0;
    if constexpr (std::is_same_v<T, double>) {
      // Its squares may be out of range: scaled by the largest element.
      const uint64_t largest = largest_of(layout, row, at.at[0], level);
      if (largest == 0 || largest > Real<double>::kLargest) {
        return set(row, 0, largest == 0 ? 0.0 : std::numeric_limits<double>::quiet_NaN());
      }
      exponent = -std::ilogb(bit_cast<double>(largest));
    }
    double total[1];
    row_sums<SumOfSquares>(level, layout, row, at, PowerOfTwo<Compute>(exponent), total);
    if (total[0] == 0.0 || !std::isfinite(total[0])) {
      return set(row, 0, total[0] == 0.0 ? 0.0 : std::numeric_limits<double>::quiet_NaN());
    }
    const double length = std::sqrt(total[0]);
    if constexpr (std::is_same_v<T, double>) return set(row, exponent, 1.0 / length);
    exponent = -std::ilogb(length);
    set(row, exponent, 1.0 / std::ldexp(length, exponent));
  }

  void set(int64_t row, int exponent, double reciprocal) {
    scale_[row] = PowerOfTwo<Scalar>(exponent);
    reciprocal_[row] = static_cast<Scalar>(reciprocal);
  }

  static uint64_t largest_of(const Layout<1>& layout, int64_t row, const double* data,
                             simd::Level level) {
    uint64_t largest = 0;
    for_each_span(layout, row * layout.row_elements, (row + 1) * layout.row_elements,
                  [&](const Span<1>& span) {
                    double tile[kSumLanes];
                    for (int64_t done = 0; done < span.count; done += kSumLanes) {
                      const int64_t count = std::min<int64_t>(kSumLanes, span.count - done);
                      const double* from = gathered(data + span.offset[0] + done * span.stride[0],
                                                    span.stride[0], count, tile);
                      simd::call<LargestTile<double>>(level, from, count, &largest);
                    }
                  });
    return largest;
  }

  const View matrix_;
  const std::unique_ptr<PowerOfTwo<Scalar>[]> scale_;
  const std::unique_ptr<Scalar[]> reciprocal_;
};

// Calls body with the Format that serves a dtype at a level.
template <class Body>
void visit_format(Dtype dtype, simd::Level level, const Body& body) {
  visit_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (tiles(level).bfloat16 != nullptr) return body(Pairs{});
    }
    body(Scaled<T>{});
  });
}

}  // namespace brittle::cosine
