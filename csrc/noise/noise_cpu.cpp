// noise on the CPU.
//
// DESIGN. 8 bytes of memory per float32 element, 12 backward, and some 100 operations for a
// Gaussian number: bound by arithmetic, so everything runs in vectors. A tile of up to 1024
// elements goes through three loops that stay in the first-level cache: Philox words, block by
// block side by side; those words made into the kind's draws (log, sine and cosine in lanes) and
// put in element order; the draws applied to x and clamped. Threads split the elements; a tile may
// start and end inside a Philox block.

#include <algorithm>

#include "common/philox_cpu.h"
#include "common/walk.h"
#include "noise/noise.h"

namespace brittle {
namespace {

constexpr int64_t kGrain = 4096;

// tile.word[k][b] -> draws[4 b + k], the bits that noisy() takes. The kinds' numbers are made in
// place, pair by pair: one loop over everything is too much for the vectoriser's registers.
template <Noise kind>
struct DrawTile {
  BRITTLE_INLINE static void run(PhiloxTile* tile, int blocks, uint32_t* __restrict draws) {
    if constexpr (draws_gaussian(kind)) {
      for (int pair = 0; pair < 4; pair += 2) {
        uint32_t* __restrict first = tile->word[pair];
        uint32_t* __restrict second = tile->word[pair + 1];
        for (int b = 0; b < blocks; ++b) {
          const GaussianPair numbers = gaussian_pair(first[b], second[b]);
          first[b] = bit_cast<uint32_t>(numbers.first);
          second[b] = bit_cast<uint32_t>(numbers.second);
        }
      }
    } else if constexpr (!draws_word(kind)) {
      for (int k = 0; k < 4; ++k) {
        for (int b = 0; b < blocks; ++b) {
          const uint32_t word = tile->word[k][b];
          tile->word[k][b] = bit_cast<uint32_t>(
              kind == Noise::laplace ? laplace_number(word) : symmetric_uniform<float>(word));
        }
      }
    }
    const PhiloxTile& words = *tile;
    for (int b = 0; b < blocks; ++b) {
      for (int k = 0; k < 4; ++k) draws[4 * b + k] = words.word[k][b];
    }
  }
};

template <class T, Noise kind>
struct ApplyTile {
  BRITTLE_INLINE static void run(const T* x, const uint32_t* __restrict draws, T* out,
                                 int64_t count, NoiseNumbers<typename Real<T>::Compute> numbers) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) out[i] = noise_element<kind>(x[i], draws[i], numbers);
  }
};

// Poisson numbers take a search each; thirty-two searches go side by side, until the last of them
// is done.
template <class T>
struct ApplyTile<T, Noise::shot> {
  BRITTLE_INLINE static void run(const T* x, const uint32_t* __restrict draws, T* out,
                                 int64_t count, NoiseNumbers<typename Real<T>::Compute> numbers) {
    using Compute = typename Real<T>::Compute;
    constexpr int kLanes = 32;
    for (int64_t done = 0; done < count; done += kLanes) {
      const int batch = static_cast<int>(std::min<int64_t>(kLanes, count - done));
      Compute clean[kLanes] = {};
      uint32_t words[kLanes] = {};
      for (int l = 0; l < batch; ++l) clean[l] = widen(x[done + l]);
      for (int l = 0; l < batch; ++l) words[l] = draws[done + l];
      double found[kLanes];
      poisson_lanes(clean, words, static_cast<double>(numbers.scale), found);
      for (int l = 0; l < batch; ++l) {
        const Compute number = static_cast<Compute>(found[l]) / numbers.scale;
        const Compute value = clean[l] != clean[l] ? clean[l] : number;
        out[done + l] = stored_as<T>(Real<T>::to_word(clamp(value, numbers.lo, numbers.hi)));
      }
    }
  }

  // poisson_search in lanes: the same operations in the same order. A lane that is done goes on
  // without effect, since what is left of its uniform number only falls.
  template <class Compute, int kLanes>
  BRITTLE_INLINE static void poisson_lanes(const Compute (&clean)[kLanes],
                                           const uint32_t (&words)[kLanes], double scale,
                                           double (&found)[kLanes]) {
    double rate[kLanes], inverse_rate[kLanes], left[kLanes];
    double up[kLanes], down[kLanes], above[kLanes], below[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      rate[l] = scale * static_cast<double>(clean[l]);
      const PoissonStart start = poisson_start(rate[l]);
      const bool any = (rate[l] > 0.0) & (rate[l] <= kPoissonLargest);
      inverse_rate[l] = 1.0 / rate[l];
      found[l] = any ? start.first : (rate[l] > 0.0 ? rate[l] : 0.0);
      above[l] = below[l] = start.first;
      up[l] = down[l] = start.probability;
      left[l] = any ? (static_cast<double>(words[l]) + 0.5) * 0x1p-32 - start.probability : -1.0;
    }
    for (;;) {
      int searching = 0;
      for (int l = 0; l < kLanes; ++l) searching += left[l] > 0.0 ? 1 : 0;
      if (searching == 0) return;
      for (int l = 0; l < kLanes; ++l) {
        above[l] += 1.0;
        up[l] *= rate[l] * (1.0 / above[l]);
        down[l] *= below[l] * inverse_rate[l];
        below[l] -= 1.0;
        const double after_up = left[l] - up[l];
        const double after = after_up - down[l];
        const bool ends = (left[l] > 0.0) & (after <= 0.0);
        found[l] = ends ? (after_up <= 0.0 ? above[l] : below[l]) : found[l];
        const bool exhausted =
            (up[l] < kPoissonNegligible) & (down[l] < kPoissonNegligible) & (above[l] > rate[l]);
        left[l] = exhausted ? -1.0 : after;
      }
    }
  }
};

template <class T, Noise kind>
struct GradientTile {
  BRITTLE_INLINE static void run(const T* grad, const T* x, const uint32_t* __restrict draws,
                                 T* out, int64_t count,
                                 NoiseNumbers<typename Real<T>::Compute> numbers) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      out[i] = noise_gradient<kind>(grad[i], x[i], draws[i], numbers);
    }
  }
};

template <bool for_write, class T>
void prefetch(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, for_write);
}

template <class T, Noise kind>
void noise_typed(const NoiseOp& op, const Execution& execution) {
  const T* const grad = static_cast<const T*>(op.grad);
  const T* const x = static_cast<const T*>(op.x);
  T* const out = static_cast<T*>(op.out);
  const simd::Level level = simd::in_use();
  const int64_t elements = op.layout.rows * op.layout.row_elements;
  parallel_for(execution, elements, kGrain, [&](int64_t begin, int64_t end) {
    for_each_span(op.layout, begin, end, [&](const Span<3>& span) {
      const auto numbers = noise_numbers<T>(kind, op.scale.at(span.row), op.lo, op.hi);
      const int64_t id = op.sample_ids ? op.sample_ids[span.row] : span.row;
      constexpr int64_t kElements = 4 * PhiloxTile::kBlocks;
      PhiloxTile tile;
      alignas(64) uint32_t draws[kElements];
      alignas(64) T tiles[3][kElements];
      for (int64_t done = 0; done < span.count;) {
        const int64_t first = span.first + done;
        const int64_t lead = first % 4;
        const int64_t count = std::min(kElements - lead, span.count - done);
        const int blocks = static_cast<int>((lead + count + 3) / 4);
        const T* const from = x + span.offset[1] + done * span.stride[1];
        T* const target = out + span.offset[2] + done * span.stride[2];
        // Arithmetic takes longer than memory: fetch the tile's lines while its numbers are made.
        if (span.stride[1] == 1) prefetch<false>(from, count);
        if (span.stride[2] == 1 && out != x) prefetch<true>(target, count);
        fill_philox(level, tile, static_cast<uint32_t>(first / 4), blocks, op.seed, id, op.draw);
        simd::call<DrawTile<kind>>(level, &tile, blocks, static_cast<uint32_t*>(draws));
        const T* const xt = gathered(from, span.stride[1], count, tiles[1]);
        const bool direct = span.stride[2] == 1 || count == 1;
        T* const computed = direct ? target : tiles[2];
        const uint32_t* const drawn = draws + lead;
        if (grad == nullptr) {
          simd::call<ApplyTile<T, kind>>(level, xt, drawn, computed, count, numbers);
        } else {
          const T* const gt = gathered(grad + span.offset[0] + done * span.stride[0],
                                       span.stride[0], count, tiles[0]);
          simd::call<GradientTile<T, kind>>(level, gt, xt, drawn, computed, count, numbers);
        }
        if (!direct) scatter(computed, count, target, span.stride[2]);
        done += count;
      }
    });
  });
}

// Adds a tile's terms to the total, in the order that ball_factor's comment tells.
template <int norm>
struct SumTile {
  BRITTLE_INLINE static void run(const uint32_t* __restrict draws, double* total) {
    double lanes[kBallLanes] = {};
    for (int i = 0; i < kBallTile; i += kBallLanes) {
      for (int l = 0; l < kBallLanes; ++l) {
        lanes[l] += ball_term<norm>(bit_cast<float>(draws[i + l]));
      }
    }
    for (int half = kBallLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    *total += lanes[0];
  }
};

// Threads share out the rows; a row's numbers are drawn twice, for its length and for its result,
// rather than kept.
template <class T, int norm>
void in_ball_typed(const BallOp& op, const Execution& execution) {
  constexpr Noise kNumbers = ball_numbers<norm>();
  static_assert(kBallTile == 4 * PhiloxTile::kBlocks);
  const T* const x = static_cast<const T*>(op.x);
  T* const out = static_cast<T*>(op.out);
  const simd::Level level = simd::in_use();
  const int64_t elements = op.layout.row_elements;
  const int64_t grain = std::max<int64_t>(1, kGrain / elements);
  parallel_for(execution, op.layout.rows, grain, [&](int64_t begin, int64_t end) {
    PhiloxTile tile;
    alignas(64) uint32_t draws[kBallTile];
    for (int64_t row = begin; row < end; ++row) {
      const int64_t id = op.sample_ids ? op.sample_ids[row] : row;
      const auto fill = [&](int64_t first) {
        const int64_t count = std::min<int64_t>(kBallTile, elements - first);
        const int blocks = static_cast<int>((count + 3) / 4);
        fill_philox(level, tile, static_cast<uint32_t>(first / 4), blocks, op.seed, id, op.draw);
        simd::call<DrawTile<kNumbers>>(level, &tile, blocks, static_cast<uint32_t*>(draws));
        std::fill(draws + count, draws + kBallTile, 0u);
      };
      double total = 0.0;
      for (int64_t first = 0; first < elements; first += kBallTile) {
        fill(first);
        simd::call<SumTile<norm>>(level, static_cast<const uint32_t*>(draws), &total);
      }
      const double factor =
          ball_factor<norm>(total, op.eps.at(row), op.surface, elements, op.seed, id, op.draw);
      const auto numbers = noise_numbers<T>(kNumbers, factor, op.lo, op.hi);
      for_each_span(op.layout, row * elements, (row + 1) * elements, [&](const Span<2>& span) {
        T tiles[2][kBallTile];
        for (int64_t done = 0; done < span.count;) {
          const int64_t first = span.first + done;
          const int64_t lead = first % kBallTile;
          const int64_t count = std::min(kBallTile - lead, span.count - done);
          fill(first - lead);
          const T* const xt =
              gathered(x + span.offset[0] + done * span.stride[0], span.stride[0], count, tiles[0]);
          T* const target = out + span.offset[1] + done * span.stride[1];
          const bool direct = span.stride[1] == 1 || count == 1;
          T* const computed = direct ? target : tiles[1];
          simd::call<ApplyTile<T, kNumbers>>(level, xt, static_cast<const uint32_t*>(draws + lead),
                                             computed, count, numbers);
          if (!direct) scatter(computed, count, target, span.stride[1]);
          done += count;
        }
      });
    }
  });
}

}  // namespace

void noise_cpu(const NoiseOp& op, const Execution& execution) {
  visit_dtype(op.dtype, [&](auto zero) {
    visit_noise(op.kind, [&](auto kind) {
      noise_typed<decltype(zero), decltype(kind)::value>(op, execution);
    });
  });
}

void in_ball_cpu(const BallOp& op, const Execution& execution) {
  visit_dtype(op.dtype, [&](auto zero) {
    using T = decltype(zero);
    op.norm == 2 ? in_ball_typed<T, 2>(op, execution) : in_ball_typed<T, 1>(op, execution);
  });
}

}  // namespace brittle
