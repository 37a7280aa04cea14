// l1_step_ on the CPU.
//
// DESIGN. Threads share out the rows, and all passes over a row are one thread's: a row of an image
// stays in its cache. The result needs 16 bytes per float32 element of memory (reads adv, grad and
// clean, writes adv); what costs is the searches, which go over the row a few dozen times: the
// selection over the stored gradient, in integer lanes of its own width, a few pivots a pass; the
// root over two arrays of the ways and the rooms, made once. A row that is not dense is copied
// first, so the passes only ever see unit stride.

#include <memory>
#include <type_traits>

#include "common/row_sum.h"
#include "common/walk.h"
#include "gradient_step/l1_step.h"

namespace brittle {
namespace {

constexpr int64_t kGrain = 4096;  // elements a thread must have to be worth waking
constexpr int kPivots = 3;

// Counts the gradient's magnitudes in lanes as wide as the stored type, up to kMost in a lane.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, typename Real<T>::Word>;
constexpr int64_t kMost = 1 << 14;

template <class T>
constexpr int kFractionBits = std::is_same_v<T, double>     ? 52
                              : std::is_same_v<T, float>    ? 23
                              : std::is_same_v<T, bfloat16> ? 7
                                                            : 10;

template <class T>
BRITTLE_INLINE Bits<T> magnitude_lane(T grad) {
  constexpr Bits<T> kMagnitude = static_cast<Bits<T>>(static_cast<Bits<T>>(~Bits<T>(0)) >> 1);
  return static_cast<Bits<T>>(word_of(grad) & kMagnitude);
}

// The finite magnitudes above zero: how many, and the largest.
template <class T>
struct MovableTile {
  BRITTLE_INLINE static void run(const T* __restrict grad, int64_t count, int64_t* movable,
                                 Bits<T>* largest) {
    constexpr Bits<T> kLargest = static_cast<Bits<T>>(Real<T>::kLargest);
    *movable = 0;
    Bits<T> most = 0;
    for (int64_t done = 0; done < count; done += kMost) {
      const int64_t part = std::min(kMost, count - done);
      const T* __restrict from = grad + done;
      Bits<T> sum = 0;
      for (int64_t i = 0; i < part; ++i) {
        const Bits<T> magnitude = magnitude_lane(from[i]);
        const Bits<T> less_one = static_cast<Bits<T>>(magnitude - 1);
        const Bits<T> counts = less_one < kLargest ? 1 : 0;
        sum = static_cast<Bits<T>>(sum + counts);
        const Bits<T> finite = static_cast<Bits<T>>(magnitude & (0 - counts));
        most = finite > most ? finite : most;
      }
      *movable += sum;
    }
    *largest = most;
  }
};

// Of the finite magnitudes, how many reach each pivot.
template <class T>
struct CountTile {
  struct Pivots {
    Bits<T> at[kPivots];
  };
  BRITTLE_INLINE static void run(const T* __restrict grad, int64_t count, Pivots pivot,
                                 int64_t* reached) {
    Bits<T> range[kPivots];
    for (int p = 0; p < kPivots; ++p) {
      range[p] = static_cast<Bits<T>>(Real<T>::kLargest - pivot.at[p]);
      reached[p] = 0;
    }
    for (int64_t done = 0; done < count; done += kMost) {
      const int64_t part = std::min(kMost, count - done);
      const T* __restrict from = grad + done;
      Bits<T> sum[kPivots] = {};
      for (int64_t i = 0; i < part; ++i) {
        const Bits<T> magnitude = magnitude_lane(from[i]);
        for (int p = 0; p < kPivots; ++p) {
          const Bits<T> above = static_cast<Bits<T>>(magnitude - pivot.at[p]);
          sum[p] = static_cast<Bits<T>>(sum[p] + (above <= range[p] ? 1 : 0));
        }
      }
      for (int p = 0; p < kPivots; ++p) reached[p] += sum[p];
    }
  }
};

template <class T>
struct WayTile {
  BRITTLE_INLINE static void run(Places<T, 3> row, typename Real<T>::Compute* __restrict lengths,
                                 typename Real<T>::Compute* __restrict rooms, int64_t count,
                                 L1Numbers<T> numbers) {
    for (int64_t i = 0; i < count; ++i) {
      const L1Way<T> way = l1_way(row.at[0][i], row.at[1][i], row.at[2][i], numbers);
      lengths[i] = way.length;
      rooms[i] = way.room;
    }
  }
};

// Of up to kSumLanes elements. Adds to the lanes what stays of their elements, and counts those
// that give.
template <class Compute>
struct KeptTile {
  BRITTLE_INLINE static void run(const Compute* __restrict lengths, const Compute* __restrict rooms,
                                 int64_t count, double shrink, double* __restrict lanes,
                                 int64_t* giving) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const L1Kept kept = l1_kept(lengths[i], rooms[i], shrink);
      lanes[i] += kept.length;
      sum -= kept.gives;
    }
    *giving += static_cast<int64_t>(sum);
  }
};

template <class T, bool shrunk>
struct StepTile {
  // No __restrict: adv may be clean itself. Equal indices alone may meet.
  BRITTLE_INLINE static void run(T* adv, const T* grad, const T* clean, int64_t count,
                                 L1Numbers<T> numbers) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      adv[i] = l1_step_element<shrunk>(adv[i], grad[i], clean[i], numbers);
    }
  }
};

template <class T>
struct FreeTile {
  BRITTLE_INLINE static void run(const T* __restrict adv, const T* __restrict grad,
                                 T* __restrict free, int64_t count, L1Numbers<T> numbers) {
    for (int64_t i = 0; i < count; ++i) {
      free[i] = l1_free(adv[i], grad[i], numbers.lo, numbers.hi);
    }
  }
};

// What a thread works with, kept from row to row.
template <class T>
class Rows {
  using Compute = typename Real<T>::Compute;

 public:
  Rows(const L1Step& op, simd::Level level)
      : op_(op),
        level_(level),
        count_(op.layout.row_elements),
        dense_(op.layout.dense()),
        ways_(new Compute[2 * count_]),
        free_(new T[count_]),
        copies_(dense_ ? nullptr : new T[3 * count_]) {}

  void step(int64_t row) const {
    const Places<T, 3> at = places(row);
    T* const adv = const_cast<T*>(at.at[0]);
    const double step_size = op_.step_size.at(row);
    const double eps = op_.eps.at(row);
    auto numbers = l1_numbers<T>(1, 0, 0.0, op_.lo, op_.hi);
    if (step_size > 0.0) {
      simd::call<FreeTile<T>>(level_, at.at[0], at.at[1], free_.get(), count_, numbers);
      const auto selection = select(free_.get(), op_.k.at(row));
      numbers = l1_numbers<T>(selection.lo, selection.count, step_size, op_.lo, op_.hi);
    }
    if (eps <= std::numeric_limits<double>::max())
      numbers.shrink = shrink(at, numbers, l1_radius<Compute>(eps));
    TraceSums sums;
    if (op_.trace != nullptr) {
      simd::call<TraceGradientTile<T>>(level_, at.at[1], count_, &sums);
    }
    if (numbers.shrink == 0.0) {
      simd::call<StepTile<T, false>>(level_, adv, at.at[1], at.at[2], count_, numbers);
    } else {
      simd::call<StepTile<T, true>>(level_, adv, at.at[1], at.at[2], count_, numbers);
    }
    if (op_.trace != nullptr) {
      simd::call<TracePointTile<T>>(level_, at.at[0], int64_t{0}, count_, &sums);
      add_trace(op_.trace, row, sums);
    }
    if (!dense_) put_back(row);
  }

 private:
  // The operands' rows side by side: where they lie, or copied.
  Places<T, 3> places(int64_t row) const {
    Places<T, 3> at{{static_cast<const T*>(op_.adv), static_cast<const T*>(op_.grad),
                     static_cast<const T*>(op_.clean)}};
    for (int o = 0; o < 3; ++o) {
      if (dense_) at.at[o] += row * op_.layout.row_stride[o];
    }
    if (dense_) return at;
    for_each_span(op_.layout, row * count_, (row + 1) * count_, [&](const Span<3>& span) {
      for (int o = 0; o < 3; ++o) {
        T* const to = copies_.get() + o * count_ + span.first;
        const T* const from = at.at[o] + span.offset[o];
        for (int64_t i = 0; i < span.count; ++i) to[i] = from[i * span.stride[o]];
      }
    });
    for (int o = 0; o < 3; ++o) at.at[o] = copies_.get() + o * count_;
    return at;
  }

  void put_back(int64_t row) const {
    T* const adv = static_cast<T*>(op_.adv);
    for_each_span(op_.layout, row * count_, (row + 1) * count_, [&](const Span<3>& span) {
      scatter(copies_.get() + span.first, span.count, adv + span.offset[0], span.stride[0]);
    });
  }

  L1Selection<T, kPivots> select(const T* grad, double k) const {
    using Word = typename Real<T>::Word;
    int64_t movable;
    Bits<T> largest;
    simd::call<MovableTile<T>>(level_, grad, count_, &movable, &largest);
    L1Selection<T, kPivots> selection(movable, k, largest);
    // A few of many are within a few powers of two of the largest: the first round looks there.
    constexpr Word kOctave = Word(1) << kFractionBits<T>;
    bool near_largest = largest > 6 * kOctave;
    while (!selection.found()) {
      Word pivot[kPivots];
      typename CountTile<T>::Pivots lanes;
      int64_t reached[kPivots];
      for (int p = 0; p < kPivots; ++p) {
        const Word octaves = static_cast<Word>((kPivots - p) * (kPivots - p + 1) / 2);
        pivot[p] = near_largest ? largest - octaves * kOctave : selection.pivot(p);
        lanes.at[p] = static_cast<Bits<T>>(pivot[p]);
      }
      near_largest = false;
      simd::call<CountTile<T>>(level_, grad, count_, lanes, static_cast<int64_t*>(reached));
      selection.narrow(pivot, reached);
    }
    return selection;
  }

  double shrink(const Places<T, 3>& row, const L1Numbers<T>& numbers, double radius) const {
    simd::call<WayTile<T>>(level_, row, lengths(), rooms(), count_, numbers);
    int64_t giving;
    double sum = kept(0.0, giving);
    L1Shrink<Compute> search(sum, radius);
    while (!search.found) {
      search.narrow(sum, static_cast<double>(giving));
      if (!search.found) sum = kept(search.at, giving);
    }
    return search.at;
  }

  // The row's sum, in the order of row_sum.h.
  double kept(double shrink, int64_t& giving) const {
    alignas(64) double lanes[kSumLanes];
    int width = 1;
    while (width < kSumLanes && width < count_) width *= 2;
    std::fill(lanes, lanes + width, 0.0);
    giving = 0;
    for (int64_t done = 0; done < count_; done += kSumLanes) {
      const int64_t count = std::min<int64_t>(kSumLanes, count_ - done);
      simd::call<KeptTile<Compute>>(level_, static_cast<const Compute*>(lengths() + done),
                                    static_cast<const Compute*>(rooms() + done), count, shrink,
                                    static_cast<double*>(lanes), &giving);
    }
    simd::call<row_sum::HalveLanes>(level_, static_cast<double*>(lanes), width);
    return lanes[0];
  }

  Compute* lengths() const { return ways_.get(); }
  Compute* rooms() const { return ways_.get() + count_; }

  const L1Step& op_;
  const simd::Level level_;
  const int64_t count_;
  const bool dense_;
  const std::unique_ptr<Compute[]> ways_;  // lengths, and the rooms behind them
  const std::unique_ptr<T[]> free_;        // the gradient that elements can follow
  const std::unique_ptr<T[]> copies_;      // of the three operands' row
};

}  // namespace

void l1_step_cpu(const L1Step& op, const Execution& execution) {
  if (op.trace != nullptr) clear_trace(op.trace, op.layout.rows);
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    const simd::Level level = simd::in_use();
    const int64_t grain =
        std::max<int64_t>(1, kGrain / std::max<int64_t>(1, op.layout.row_elements));
    parallel_for(execution, op.layout.rows, grain, [&](int64_t begin, int64_t end) {
      const Rows<T> rows(op, level);
      for (int64_t row = begin; row < end; ++row) rows.step(row);
    });
  });
}

}  // namespace brittle
