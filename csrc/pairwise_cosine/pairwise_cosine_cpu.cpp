// pairwise_cosine on the CPU: one product, written where the caller wants it. How it is walked is
// product.h's, the innermost loop tile.cpp's.

#include "pairwise_cosine/pairwise_cosine.h"
#include "pairwise_cosine/product.h"

namespace brittle {
namespace cosine {

namespace baseline {
extern const Tiles kTiles;
}
#if defined(__x86_64__)
namespace v3 {
extern const Tiles kTiles;
}
namespace v4 {
extern const Tiles kTiles;
}
namespace v4_bf16 {
extern const Tiles kTiles;
}
#endif

const Tiles& tiles(simd::Level level) {
#if defined(__x86_64__)
  static const bool pairs = __builtin_cpu_supports("avx512bf16");
  if (level == simd::Level::v4) return pairs ? v4_bf16::kTiles : v4::kTiles;
  if (level == simd::Level::v3) return v3::kTiles;
#endif
  return baseline::kTiles;
}

}  // namespace cosine

void pairwise_cosine_cpu(const PairwiseCosine& op, const Execution& execution) {
  const simd::Level level = simd::in_use();
  cosine::visit_format(op.a.dtype, level, [&](auto format) {
    using Format = decltype(format);
    using Scalar = typename Format::Scalar;
    const cosine::Measured<Format> a(op.a, level, execution);
    std::unique_ptr<cosine::Measured<Format>> b;
    if (!op.symmetric) b = std::make_unique<cosine::Measured<Format>>(op.b, level, execution);
    const int64_t rows = op.a.size[0];
    // One chunk of a symmetric product needs no second side.
    const int64_t columns = op.symmetric && rows <= cosine::kMostRows ? 0 : op.b.size[0];
    cosine::Product<Format> product(op.a.size[1], rows, columns, level, execution);
    product.run(a.rows(), op.symmetric ? a.rows() : b->rows(), op.symmetric,
                static_cast<Scalar*>(op.out.data), op.out.stride[0], op.out.stride[1]);
  });
}

}  // namespace brittle
