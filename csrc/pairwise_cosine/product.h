// How the CPU walks over pairwise cosines: rows are packed (rows.h), multiplied and finished
// (finish.h).
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
#include <cstdint>
#include <memory>
#include <new>

#include "common/device.h"
#include "common/simd.h"
#include "common/walk.h"
#include "pairwise_cosine/finish.h"
#include "pairwise_cosine/rows.h"
#include "pairwise_cosine/tile.h"

namespace brittle::cosine {

inline constexpr int kDepth = 512;          // of a block's panels, in words
inline constexpr int kSuperblock = 2048;    // words
inline constexpr int64_t kMostRows = 4096;  // packed of either side
inline constexpr int kMostParts = 16;       // superblocks of a row

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
    constexpr double kCost = 1.0 / 32;  // of a product
    const int64_t rows = ceil_div(call.a_panels, kBlock), columns = ceil_div(call.b_panels, kBlock);
    const int64_t tasks = call.same ? rows * (rows + 1) / 2 : rows * columns;
    const double work = double(call.a.count) * call.b.count * (call.words + 1) * kCost;
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

}  // namespace brittle::cosine
