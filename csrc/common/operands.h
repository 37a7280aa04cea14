// The checks that every room's front makes of its operands. Each failure names operator, argument,
// expected and got.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/layout.h"
#include "common/overlap.h"

namespace brittle {

inline void check_floating(const char* op, const char* name, const View& view) {
  if (view.dtype == Dtype::other) {
    fail(op, name, " must be float32, float64, float16 or bfloat16; got ", view.dtype_name);
  }
}

inline void check_same_device(const char* op, const char* name, const View& view,
                              const char* like_name, const View& like) {
  const auto text = [](const View& v) {
    return v.device == Device::cpu ? std::string("cpu") : "cuda:" + std::to_string(v.device_index);
  };
  if (view.device != like.device || view.device_index != like.device_index) {
    fail(op, name, " must be on ", like_name, "'s device ", text(like), "; got ", text(view));
  }
}

inline void check_like(const char* op, const char* name, const View& view, const char* like_name,
                       const View& like) {
  bool same = view.ndim == like.ndim;
  for (int d = 0; same && d < view.ndim; ++d) same = view.size[d] == like.size[d];
  if (!same)
    fail(op, name, " must have ", like_name, "'s shape ", like.shape(), "; got ", view.shape());
  if (view.dtype != like.dtype) {
    fail(op, name, " must have ", like_name, "'s dtype ", like.dtype_name, "; got ",
         view.dtype_name);
  }
  check_same_device(op, name, view, like_name, like);
}

// Loops may be compiled for elements that lie where their type wants them.
inline void check_aligned(const char* op, const char* name, const View& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(view.item) == 0) return;
  const bool taken = view.dtype != Dtype::other || std::string(view.dtype_name) == "int64";
  if (taken && view.elements() > 0) {
    fail(op, name, " must start at a multiple of its item size of ", view.item,
         " bytes in memory; got a misaligned view");
  }
}

// An operand by its name; without a view where the caller left it out.
struct Named {
  const char* name;
  const View* view;
};

// What is written must have a place of its own for every element, and share memory with no other
// operand: kernels read and write in an order of their own. Only what they read element by element,
// `alike`, may also be the written view itself.
inline void check_written(const char* op, const char* name, const View& out,
                          std::initializer_list<Named> alike, std::initializer_list<Named> others) {
  if (meets_itself(out)) {
    fail(op, name, " must not be expanded: several of its elements share one place in memory");
  }
  for (const Named& other : alike) {
    if (other.view == nullptr || same_memory(*other.view, out)) continue;
    if (share_memory(*other.view, out)) {
      fail(op, name, " must be ", other.name,
           " itself or share no memory with it; got views that overlap in part");
    }
  }
  for (const Named& other : others) {
    if (other.view == nullptr || !share_memory(*other.view, out)) continue;
    fail(op, name, " must not share memory with ", other.name,
         ", which is read while it is written");
  }
}

inline void check_bounds(const char* op, double lo, double hi) {
  if (!(lo < hi)) fail(op, "bounds must be (lo, hi) with lo < hi; got (", lo, ", ", hi, ")");
}

// Device values are not read back: the attacks check theirs once, not at every step.
inline RowValue check_row_value(const char* op, const char* name, const RowArgument& argument,
                                const View& like, const char* like_name, bool finite = false,
                                double least = 0.0) {
  const char* range = finite ? " must be finite and >= " : " must be >= ";
  const auto wrong = [=](double v) { return !(v >= least) || (finite && std::isinf(v)); };
  if (argument.per_row == nullptr) {
    if (wrong(argument.scalar)) fail(op, name, range, least, "; got ", argument.scalar);
    return {argument.scalar, nullptr};
  }
  const View& view = *argument.per_row;
  const int64_t rows = like.ndim > 0 ? like.size[0] : 1;
  if (view.ndim != 1 || view.size[0] != rows || like.ndim == 0) {
    fail(op, name, " must be a scalar or [N]; got shape ", view.shape(), " for N = ", rows);
  }
  if (view.dtype != Dtype::float64) {
    fail(op, name, " must be float64 when given per row; got ", view.dtype_name);
  }
  if (rows > 1 && view.stride[0] != 1) fail(op, name, " must be contiguous when given per row");
  check_same_device(op, name, view, like_name, like);
  const double* values = static_cast<const double*>(view.data);
  if (view.device == Device::cpu) {
    for (int64_t row = 0; row < rows; ++row) {
      if (wrong(values[row])) {
        fail(op, name, range, least, "; got ", values[row], " in row ", row);
      }
    }
  }
  return {0.0, values};
}

[[noreturn]] inline void fail_without_cuda(const char* op) {
  fail(op,
       "this build has no CUDA kernels; install nvcc and reinstall brittle with BRITTLE_CUDA=ON");
}

// int64 [N] beside `like`, or none.
inline const int64_t* check_sample_ids(const char* op, const View* ids, const View& like,
                                       const char* like_name) {
  if (ids == nullptr) return nullptr;
  if (ids->ndim != 1 || ids->size[0] != like.size[0]) {
    fail(op, "sample_ids must be [N]; got ", ids->shape(), " for N = ", like.size[0]);
  }
  if (std::string(ids->dtype_name) != "int64") {
    fail(op, "sample_ids must be int64; got ", ids->dtype_name);
  }
  if (like.size[0] > 1 && ids->stride[0] != 1) fail(op, "sample_ids must be contiguous");
  check_same_device(op, "sample_ids", *ids, like_name, like);
  const int64_t* values = static_cast<const int64_t*>(ids->data);
  if (ids->device == Device::cpu) {
    for (int64_t row = 0; row < like.size[0]; ++row) {
      if (values[row] < 0) fail(op, "sample_ids must be >= 0; got ", values[row], " in row ", row);
    }
  }
  return values;
}

inline void check_draw(const char* op, int64_t draw) {
  if (draw < 0 || draw > std::numeric_limits<uint32_t>::max()) {
    fail(op, "draw must be in [0, 2^32); got ", draw);
  }
}

// The element's block must fit the 32 bits that the counter has for it.
inline void check_counter(const char* op, int64_t row_elements) {
  if (row_elements > (int64_t{1} << 34)) {
    fail(op, "a sample may have at most 2^34 elements; got ", row_elements);
  }
}

}  // namespace brittle
