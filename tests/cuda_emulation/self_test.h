#pragma once

#include <cstdint>

namespace brittle {

void emulated_block_sum(const double* in, int64_t count, double* out, int64_t blocks);
void emulated_suffix_sum(const double* in, double* out);
void emulated_skipped_barrier(double* out);

}  // namespace brittle
