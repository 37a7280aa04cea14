// pairwise_cosine_topk on the CPU.
//
// DESIGN. The matrix of cosines is computed in squares that stay in the shared cache, and read once
// from there: 4 bytes against 2 D operations a cosine. Most cosines are below what their row has
// already, so a comparison of 64 at a time with one threshold is all that they cost; the few others
// go into a heap of the row. Without b, a square above the diagonal also serves the rows that its
// columns stand for, so half of the product suffices. Every row sees its candidates by ascending
// index: the squares are taken row by row.

#include <vector>

#include "pairwise_cosine/pairwise_cosine.h"
#include "pairwise_cosine/product.h"

namespace brittle {
namespace cosine {
namespace {

constexpr int64_t kSide = 2048;            // of a square
constexpr int64_t kMostPacked = 16 << 20;  // bytes
constexpr int64_t kLanes = 64;

template <class Scalar>
struct Neighbour {
  Scalar cosine;
  int64_t index;
  // Whether this one is nearer: the larger cosine, of equal ones the lower index.
  bool operator<(const Neighbour& other) const {
    return cosine > other.cosine || (cosine == other.cosine && index < other.index);
  }
};

// The nearest so far of every row: a heap with the farthest on top, and that one's cosine as the
// threshold that a candidate must pass.
template <class Scalar>
class Nearest {
 public:
  Nearest(int64_t rows, int64_t k)
      : k_(k),
        heaps_(rows * k,
               {-std::numeric_limits<Scalar>::infinity(), std::numeric_limits<int64_t>::max()}),
        threshold_(rows, -std::numeric_limits<Scalar>::infinity()) {}

  const Scalar* thresholds(int64_t row) const { return threshold_.data() + row; }

  void offer(int64_t row, Neighbour<Scalar> candidate) {
    const auto heap = heaps_.begin() + row * k_;
    if (!(candidate < *heap)) return;
    std::pop_heap(heap, heap + k_);
    heap[k_ - 1] = candidate;
    std::push_heap(heap, heap + k_);
    threshold_[row] = heap->cosine;
  }

  void sorted(int64_t row, Scalar* cosines, int64_t* indices) {
    const auto heap = heaps_.begin() + row * k_;
    std::sort_heap(heap, heap + k_);
    for (int64_t n = 0; n < k_; ++n) {
      const bool found = heap[n].index != std::numeric_limits<int64_t>::max();
      cosines[n] = found ? heap[n].cosine : std::numeric_limits<Scalar>::quiet_NaN();
      indices[n] = found ? heap[n].index : -1;
    }
  }

 private:
  const int64_t k_;
  std::vector<Neighbour<Scalar>> heaps_;
  std::vector<Scalar> threshold_;
};

// Sets a bit for every kLanes cosines of which one is above its threshold: of the row's, or, where
// each column has its own, above that. A NaN is above nothing. A full heap's threshold is not
// passed by an equal cosine: its index is higher.
template <class Scalar, bool own>
struct AboveTile {
  BRITTLE_INLINE static void run(const Scalar* __restrict cosines, int64_t count,
                                 const Scalar* __restrict thresholds, uint8_t* __restrict above) {
    for (int64_t done = 0; done < count; done += kLanes) {
      const int64_t lanes = std::min(kLanes, count - done);
      int found = 0;
      for (int64_t i = 0; i < lanes; ++i) {
        found |= cosines[done + i] > thresholds[own ? done + i : 0] ? 1 : 0;
      }
      above[done / kLanes] = static_cast<uint8_t>(found);
    }
  }
};

// A square of cosines: rows from `row`, columns from `column`.
template <class Scalar>
struct Square {
  const Scalar* cosines;
  int64_t row, column;
  int64_t rows, columns;
  const Scalar* at(int64_t r) const { return cosines + r * columns; }
};

template <class Scalar>
void offer_to_rows(const Square<Scalar>& square, bool symmetric, Nearest<Scalar>& nearest,
                   simd::Level level, const Execution& execution) {
  draw_tasks(execution, square.rows, double(square.rows) * square.columns / 8, [&] {
    return [&](int64_t r) {
      uint8_t above[kSide / kLanes];
      const int64_t row = square.row + r;
      const Scalar* const cosines = square.at(r);
      simd::call<AboveTile<Scalar, false>>(level, cosines, square.columns, nearest.thresholds(row),
                                           static_cast<uint8_t*>(above));
      for (int64_t done = 0; done < square.columns; done += kLanes) {
        if (!above[done / kLanes]) continue;
        for (int64_t c = done; c < std::min(done + kLanes, square.columns); ++c) {
          if (!(cosines[c] > *nearest.thresholds(row))) continue;
          if (symmetric && square.column + c == row) continue;
          nearest.offer(row, {cosines[c], square.column + c});
        }
      }
    };
  });
}

// The square's transpose: its columns are rows to which its rows are candidates.
template <class Scalar>
void offer_to_columns(const Square<Scalar>& square, Nearest<Scalar>& nearest, simd::Level level,
                      const Execution& execution) {
  const int64_t strips = ceil_div(square.columns, kLanes);
  draw_tasks(execution, strips, double(square.rows) * square.columns / 8, [&] {
    return [&](int64_t strip) {
      const int64_t first = strip * kLanes;
      const int64_t count = std::min(kLanes, square.columns - first);
      for (int64_t r = 0; r < square.rows; ++r) {
        const Scalar* const cosines = square.at(r) + first;
        const Scalar* const thresholds = nearest.thresholds(square.column + first);
        uint8_t above;
        simd::call<AboveTile<Scalar, true>>(level, cosines, count, thresholds, &above);
        if (!above) continue;
        for (int64_t c = 0; c < count; ++c) {
          if (!(cosines[c] > thresholds[c])) continue;
          nearest.offer(square.column + first + c, {cosines[c], square.row + r});
        }
      }
    };
  });
}

template <class Format>
void topk(const PairwiseTopk& op, simd::Level level, const Execution& execution) {
  using Scalar = typename Format::Scalar;
  const Measured<Format> a(op.a, level, execution);
  std::unique_ptr<Measured<Format>> other;
  if (!op.symmetric) other = std::make_unique<Measured<Format>>(op.b, level, execution);
  const Rows<Format> rows = a.rows();
  const Rows<Format> columns = op.symmetric ? rows : other->rows();

  const int64_t depth = op.a.size[1];
  const int64_t row_bytes =
      std::max<int64_t>(1, Product<Format>::words_at_a_time(depth) *
                               static_cast<int64_t>(sizeof(typename Format::Word)));
  const int64_t side =
      std::min(kSide, std::max<int64_t>(kBlock * kPanel, kMostPacked / (2 * row_bytes)));
  Product<Format> product(depth, side, side, level, execution);
  const Aligned<Scalar> cosines(side * side);
  Nearest<Scalar> nearest(rows.count, op.k);
  for (int64_t i = 0; i < rows.count; i += side) {
    for (int64_t j = op.symmetric ? i : 0; j < columns.count; j += side) {
      const Square<Scalar> square{cosines.get(), i, j, std::min(side, rows.count - i),
                                  std::min(side, columns.count - j)};
      const bool diagonal = op.symmetric && i == j;
      const auto right = columns.part(j, j + square.columns);
      product.run(diagonal ? right : rows.part(i, i + square.rows), right, diagonal, cosines.get(),
                  square.columns, 1);
      offer_to_rows(square, op.symmetric, nearest, level, execution);
      if (op.symmetric && !diagonal) offer_to_columns(square, nearest, level, execution);
    }
  }
  parallel_for(execution, rows.count, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      nearest.sorted(row, static_cast<Scalar*>(op.cosines) + row * op.k, op.indices + row * op.k);
    }
  });
}

}  // namespace
}  // namespace cosine

void pairwise_cosine_topk_cpu(const PairwiseTopk& op, const Execution& execution) {
  const simd::Level level = simd::in_use();
  cosine::visit_format(op.a.dtype, level,
                       [&](auto format) { cosine::topk<decltype(format)>(op, level, execution); });
}

}  // namespace brittle
