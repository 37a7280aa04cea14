// The launch grid that the element-wise kernels share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace brittle {

struct Grid {
  unsigned x, y;
};

// Rows along y, work along x: enough blocks to fill the card a few times over, no more than there
// is work for; the kernels stride over what is left.
inline Grid grid_for(int64_t rows, int64_t work_per_row, int threads, int64_t wanted_blocks) {
  const int64_t per_row = std::max<int64_t>(1, (work_per_row + threads - 1) / threads);
  const int64_t y = std::min<int64_t>({rows, wanted_blocks, 65535});
  const int64_t x = std::min(per_row, std::max<int64_t>(1, wanted_blocks / y));
  return {static_cast<unsigned>(x), static_cast<unsigned>(y)};
}

}  // namespace brittle
