// How the CPU walks over pairwise cosines: rows are measured, packed and multiplied.
//
// DESIGN. Per superblock of depth, both matrices are packed (tile.h), scaled on the way; then
// blocks of kBlock x kBlock panels are multiplied, each by one thread, into sums of 64 KB, from two
// times 256 KB of panels: all in a second-level cache of 1 MB. A block does 2 * 128 * 128 * 512
// operations on the 512 KB that it loads, so that the shared cache is far from being the limit. A
// finished block goes to the result, of which a symmetric product computes tiles on and above the
// diagonal only and stores them twice. Tiles are small and square, so that the diagonal's wasted
// halves are 16 / N of the work.
//
// Sums. A product is added to a register, the register to the tile after kChain products, the tile
// to the block's sums as they lie, those to the result after each superblock: a tree of at most a
// few dozen branches at every level, because a long sum of like terms drifts (tile.h).
//
// Memory. What is packed of kMostRows of either side is all that is allocated: 64 MB at most up to
// D = 32768 and D / 512 MB above, however large the matrices are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>

#include "common/device.h"
#include "common/layout.h"
#include "common/numeric.h"
#include "common/row_sum.h"
#include "common/simd.h"
#include "common/walk.h"
#include "pairwise_cosine/pairwise_cosine.h"
#include "pairwise_cosine/tile.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace brittle::cosine {

inline constexpr int kBlock = 8;            // panels
inline constexpr int kDepth = 512;          // of a block's panels, in words
inline constexpr int kSuperblock = 2048;    // words
inline constexpr int64_t kMostRows = 4096;  // packed of either side
inline constexpr int kMostParts = 16;       // superblocks of a row
inline constexpr int64_t kTile = kPanel * kPanel;
inline constexpr int kStrip = 64;  // words of each row that are transposed together

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Cache lines of uninitialised memory.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : data_(static_cast<T*>(::operator new(std::max<int64_t>(1, count) * sizeof(T), kLine))) {}
  ~Aligned() { ::operator delete(data_, kLine); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  T* const data_;
};

// Runs make_worker() in each thread, and what it returns on tasks 0, 1, ... as threads become free:
// tasks differ in size, and so do the cores of a shared machine. work: in units of about a
// nanosecond.
template <class MakeWorker>
void draw_tasks(const Execution& execution, int64_t tasks, double work,
                const MakeWorker& make_worker) {
  constexpr double kWorthWaking = 2e4;  // a thread
  const int64_t units =
      tasks == 1 ? 1 : std::max<int64_t>(1, static_cast<int64_t>(work / kWorthWaking));
  std::atomic<int64_t> next{0};
  parallel_for(execution, units, 1, [&](int64_t, int64_t) {
    auto worker = make_worker();
    for (int64_t task = next++; task < tasks; task = next++) worker(task);
  });
}

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

#if defined(__SSE2__)
// The transpose of 4 x 4 words, whose rows lie `stride` apart and start at multiples of 16 bytes.
template <class Word>
BRITTLE_INLINE void transpose4(const Word* from, int64_t stride, Word* to, int64_t to_stride) {
  const auto row = [&](int i) {
    return _mm_load_ps(reinterpret_cast<const float*>(from + i * stride));
  };
  __m128 a = row(0), b = row(1), c = row(2), d = row(3);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  const auto put = [&](int i, __m128 line) {
    _mm_store_ps(reinterpret_cast<float*>(to + i * to_stride), line);
  };
  put(0, a);
  put(1, b);
  put(2, c);
  put(3, d);
}
#endif

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
  static constexpr int kElements = 1;        // a word
  static constexpr double kCost = 1.0 / 32;  // of one product, about, in nanoseconds
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
  static constexpr double kCost = 1.0 / 32;
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

// A block on its way to the result: a grid of tiles, one column of them after the other.
template <class Scalar>
struct Block {
  Scalar* sums;
  int row_tiles, column_tiles;
  int rows, columns;
  Scalar* out;
  int64_t row_stride, stride;
  const Scalar* row_reciprocal;
  const Scalar* column_reciprocal;
  bool first, last;  // superblock
  bool diagonal;     // only tiles on and above the diagonal are there
  bool mirror;       // also stored transposed, at `mirrored`
  bool stream;       // past the cache
  Scalar* mirrored;
  BRITTLE_INLINE Scalar* tile(int i, int j) const { return sums + (j * kBlock + i) * kTile; }
};

// Lines of the result are written as long as the block is wide: rows that are a power of two apart
// would drive each other out of the cache. They are fetched kAhead rows before they are needed:
// each line starts anew, and no processor foresees where.
template <class Scalar>
struct FinishBlock {
  BRITTLE_INLINE static void run(const Block<Scalar>* block) {
    const Block<Scalar>& b = *block;
    alignas(64) Scalar reciprocal[kBlock * kPanel] = {};
    for (int c = 0; c < b.columns; ++c) reciprocal[c] = b.column_reciprocal[c];
    alignas(64) Scalar edge[kPanel] = {};
    const bool streams = b.stream && b.first && b.last;  // nothing is read
    if (!streams) fetch(b, 0, kAhead);
    for (int row = 0; row < b.rows; ++row) {
      if (!streams) fetch(b, row + kAhead, row + kAhead + 1);
      const int i = row / kPanel, r = row % kPanel;
      for (int j = b.diagonal ? i : 0; j < b.column_tiles; ++j) {
        const int column = j * kPanel;
        const int count = b.columns - column < kPanel ? b.columns - column : kPanel;
        Scalar* const sums = b.tile(i, j) + r * kPanel;
        Scalar* const out = b.out + row * b.row_stride + column * b.stride;
        const bool whole = count == kPanel && b.stride == 1;
        Scalar* const to = whole ? out : edge;
        if (!b.first) {
          for (int c = 0; c < count && !whole; ++c) edge[c] = out[c * b.stride];
#pragma GCC ivdep
#pragma GCC unroll 1
          for (int c = 0; c < kPanel; ++c) sums[c] += to[c];
        }
        if (b.last) {
          const Scalar row_reciprocal = b.row_reciprocal[row];
#pragma GCC ivdep
#pragma GCC unroll 1
          for (int c = 0; c < kPanel; ++c) {
            sums[c] = cosine_of(sums[c], row_reciprocal, reciprocal[column + c]);
          }
          if (b.diagonal && i == j) sums[r] = cosine_with_itself(row_reciprocal);
        }
        put(sums, out, count, b.stride, streams);
      }
    }
    if (b.last && b.mirror) mirror(b);
    if (b.last && b.stream) finish_streaming();
  }

 private:
  static constexpr int kAhead = 6;

  BRITTLE_INLINE static void fetch(const Block<Scalar>& b, int begin, int end) {
    constexpr int kLine = 64 / sizeof(Scalar);
    for (int row = begin; row < end && row < b.rows; ++row) {
      const int first = b.diagonal ? row / kPanel * kPanel : 0;
      for (int column = first; column < b.columns; column += kLine) {
        __builtin_prefetch(b.out + row * b.row_stride + column * b.stride, 1);
      }
    }
  }

  BRITTLE_INLINE static void put(const Scalar* from, Scalar* to, int count, int64_t stride,
                                 bool streams) {
    if (count == kPanel && stride == 1 && streams) {
      stream(from, kPanel, to);
    } else if (count == kPanel && stride == 1) {
#pragma GCC ivdep
#pragma GCC unroll 1
      for (int c = 0; c < kPanel; ++c) to[c] = from[c];
    } else {
      for (int c = 0; c < count; ++c) to[c * stride] = from[c];
    }
  }

  BRITTLE_INLINE static void mirror(const Block<Scalar>& b) {
    alignas(64) Scalar turned[kBlock][kPanel][kPanel];
    for (int j = 0; j < b.column_tiles; ++j) {
      const int last_row = b.diagonal ? j : b.row_tiles;  // the diagonal's tiles are whole
      for (int i = 0; i < last_row; ++i) turn(b.tile(i, j), turned[i]);
      for (int c = 0; c < kPanel && j * kPanel + c < b.columns; ++c) {
        Scalar* const out = b.mirrored + (j * kPanel + c) * b.row_stride;
        for (int i = 0; i < last_row; ++i) {
          const int row = i * kPanel;
          const int count = b.rows - row < kPanel ? b.rows - row : kPanel;
          put(turned[i][c], out + row * b.stride, count, b.stride, b.stream);
        }
      }
    }
  }

  BRITTLE_INLINE static void turn(const Scalar* __restrict tile, Scalar (*__restrict to)[kPanel]) {
#if defined(__SSE2__)
    if constexpr (sizeof(Scalar) == 4) {
      for (int r = 0; r < kPanel; r += 4) {
        for (int c = 0; c < kPanel; c += 4) {
          transpose4(tile + r * kPanel + c, kPanel, &to[c][r], kPanel);
        }
      }
      return;
    }
#endif
    for (int r = 0; r < kPanel; ++r) {
      for (int c = 0; c < kPanel; ++c) to[c][r] = tile[r * kPanel + c];
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

// All cosines of two sets of rows, or of one with itself.
template <class Format>
class Product {
  using Word = typename Format::Word;
  using Scalar = typename Format::Scalar;

 public:
  // rows, columns: the most that a product will be asked for.
  Product(int64_t depth, int64_t rows, int64_t columns, simd::Level level,
          const Execution& execution)
      : depth_(depth),
        words_(ceil_div(depth, Format::kElements)),
        superblock_(words_at_a_time(depth)),
        level_(level),
        execution_(execution),
        multiply_(Format::multiply(tiles(level))),
        packed_((panels(rows) + panels(columns)) * kPanel * superblock_) {}

  // Words of a row that are packed at a time: more of a long row, whose parts are summed in turn.
  static int64_t words_at_a_time(int64_t depth) {
    const int64_t words = ceil_div(depth, Format::kElements);
    const int64_t part = ceil_div(ceil_div(words, kMostParts), kDepth) * kDepth;
    return std::min(words, std::max<int64_t>(kSuperblock, part));
  }

  // symmetric: b is a.
  void run(const Rows<Format>& a, const Rows<Format>& b, bool symmetric, Scalar* out,
           int64_t row_stride, int64_t stride) {
    // Whole lines only: a line written in pieces past the cache is written several times.
    constexpr int64_t kWhole = 16 / sizeof(Scalar);
    const bool streams = a.count * b.count * int64_t{sizeof(Scalar)} > kStreamBytes &&
                         stride == 1 && row_stride % kWhole == 0 &&
                         reinterpret_cast<uintptr_t>(out) % 16 == 0;
    for (int64_t i = 0; i < a.count; i += kMostRows) {
      for (int64_t j = symmetric ? i : 0; j < b.count; j += kMostRows) {
        run_part({a.part(i, std::min(i + kMostRows, a.count)),
                  b.part(j, std::min(j + kMostRows, b.count)), symmetric && i == j, symmetric,
                  streams, out + i * row_stride + j * stride, out + j * row_stride + i * stride,
                  row_stride, stride});
      }
    }
  }

 private:
  struct Call {
    Rows<Format> a, b;
    bool same;    // b is a: only tiles on and above the diagonal are computed
    bool mirror;  // results are also stored transposed
    bool stream;  // they go past the cache
    Scalar* out;
    Scalar* mirrored;
    int64_t row_stride, stride;
    int64_t begin = 0, words = 0;  // of the superblock
    int64_t a_panels = ceil_div(a.count, kPanel), b_panels = ceil_div(b.count, kPanel);
  };

  static int64_t panels(int64_t rows) { return ceil_div(std::min(rows, kMostRows), kPanel); }

  void run_part(Call call) {
    do {
      call.words = std::min(superblock_, words_ - call.begin);
      pack(call);
      multiply(call);
      call.begin += call.words;
    } while (call.begin < words_);
  }

  Word* packed_b(const Call& call) const {
    return packed_.get() + (call.same ? 0 : call.a_panels * kPanel * call.words);
  }

  // Panels lie side by side for each kDepth of words, so that a block reads one run of memory.
  static Word* panel(Word* packed, int64_t panels, int64_t words, int64_t done, int64_t index) {
    const int64_t length = std::min<int64_t>(kDepth, words - done);
    return packed + (done * panels + index * length) * kPanel;
  }

  void pack(const Call& call) {
    const int64_t tasks = call.a_panels + (call.same ? 0 : call.b_panels);
    const double work = double(tasks) * kPanel * call.words / 2;
    draw_tasks(execution_, tasks, work, [&] {
      return [&](int64_t task) {
        const bool of_a = task < call.a_panels;
        const int64_t index = of_a ? task : task - call.a_panels;
        const int64_t panels = of_a ? call.a_panels : call.b_panels;
        Word* const packed = of_a ? packed_.get() : packed_b(call);
        for (int64_t done = 0; done < call.words; done += kDepth) {
          simd::call<PackPanel<Format>>(level_, of_a ? &call.a : &call.b, index * kPanel, depth_,
                                        call.begin + done,
                                        std::min<int64_t>(kDepth, call.words - done),
                                        panel(packed, panels, call.words, done, index));
        }
      };
    });
  }

  void multiply(const Call& call) {
    const int64_t rows = ceil_div(call.a_panels, kBlock), columns = ceil_div(call.b_panels, kBlock);
    const int64_t tasks = call.same ? rows * (rows + 1) / 2 : rows * columns;
    const double work = double(call.a.count) * call.b.count * (call.words + 1) * Format::kCost;
    draw_tasks(execution_, tasks, work, [&] {
      return [&, sums = std::make_unique<Aligned<Scalar>>(kBlock * kBlock * kTile)](int64_t task) {
        if (!call.same) return block(call, task / columns, task % columns, sums->get());
        // The blocks on the diagonal, half as large, come last.
        int64_t row = 0;
        const int64_t above = tasks - rows;
        if (task >= above) return block(call, task - above, task - above, sums->get());
        while (task >= rows - 1 - row) task -= rows - 1 - row++;
        block(call, row, row + 1 + task, sums->get());
      };
    });
  }

  void block(const Call& call, int64_t block_row, int64_t block_column, Scalar* sums) {
    const int64_t i0 = block_row * kBlock, i1 = std::min(i0 + kBlock, call.a_panels);
    const int64_t j0 = block_column * kBlock, j1 = std::min(j0 + kBlock, call.b_panels);
    const bool diagonal = call.same && block_row == block_column;
    std::fill(sums, sums + kBlock * kBlock * kTile, Scalar(0));
    const auto tile = [&](int64_t i, int64_t j) {
      return sums + ((j - j0) * kBlock + i - i0) * kTile;
    };
    for (int64_t done = 0; done < call.words; done += kDepth) {
      const int64_t length = std::min<int64_t>(kDepth, call.words - done);
      for (int64_t j = j0; j < j1; ++j) {
        const Word* const right = panel(packed_b(call), call.b_panels, call.words, done, j);
        const int64_t end = diagonal ? j + 1 : i1;
        for (int64_t i = i0; i < end; ++i) {
          multiply_(panel(packed_.get(), call.a_panels, call.words, done, i), right, length,
                    tile(i, j));
        }
      }
    }
    finish(call, i0, j0, diagonal, sums);
  }

  void finish(const Call& call, int64_t row_panel, int64_t column_panel, bool diagonal,
              Scalar* sums) {
    const int64_t row = row_panel * kPanel, column = column_panel * kPanel;
    const auto part = [](int64_t rows, int64_t from) {
      return static_cast<int>(std::min<int64_t>(kBlock * kPanel, rows - from));
    };
    Block<Scalar> block;
    block.sums = sums;
    block.rows = part(call.a.count, row);
    block.columns = part(call.b.count, column);
    block.row_tiles = static_cast<int>(ceil_div(block.rows, kPanel));
    block.column_tiles = static_cast<int>(ceil_div(block.columns, kPanel));
    block.out = call.out + row * call.row_stride + column * call.stride;
    block.row_stride = call.row_stride;
    block.stride = call.stride;
    block.row_reciprocal = call.a.reciprocal + row;
    block.column_reciprocal = call.b.reciprocal + column;
    block.first = call.begin == 0;
    block.last = call.begin + call.words == words_;
    block.diagonal = diagonal;
    block.mirror = call.mirror;
    block.stream = call.stream;
    block.mirrored = call.mirrored + column * call.row_stride + row * call.stride;
    simd::call<FinishBlock<Scalar>>(level_, static_cast<const Block<Scalar>*>(&block));
  }

  const int64_t depth_;       // in elements
  const int64_t words_;       // of a row
  const int64_t superblock_;  // words that are packed at a time
  const simd::Level level_;
  const Execution& execution_;
  const decltype(Format::multiply(Tiles{})) multiply_;
  const Aligned<Word> packed_;
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
