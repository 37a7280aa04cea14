// How several strided operands of one shape are walked together.
//
// A View is an array as a door hands it over. A Layout is the same walk in its simplest form: rows
// (samples), and inside a row as few dimensions as all operands allow. Operands that share one
// dense memory order, channels-last included, become a single dimension of unit stride.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/device.h"
#include "common/host_device.h"
#include "common/numeric.h"

namespace brittle {

inline constexpr int kMaxDims = 12;

struct View {
  void* data = nullptr;
  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};  // in elements
  Dtype dtype = Dtype::other;
  const char* dtype_name = "";
  int64_t item = 1;  // bytes of an element
  Device device = Device::cpu;
  int device_index = 0;

  int64_t elements() const {
    int64_t product = 1;
    for (int d = 0; d < ndim; ++d) product *= size[d];
    return product;
  }
  std::string shape() const {
    std::string text = "[";
    for (int d = 0; d < ndim; ++d) text += (d ? ", " : "") + std::to_string(size[d]);
    return text + "]";
  }
};

// Offset of element `index` of an array of these sizes, the last dimension fastest.
BRITTLE_HD int64_t strided_offset(int dims, const int64_t* size, const int64_t* stride,
                                  int64_t index) {
  int64_t sum = 0;
  for (int d = dims - 1; d > 0; --d) {
    sum += (index % size[d]) * stride[d];
    index /= size[d];
  }
  return sum + index * stride[0];
}

template <int Operands>
struct Layout {
  int64_t rows = 1;
  int64_t row_elements = 1;
  int64_t row_stride[Operands] = {};
  int dims = 1;  // inside a row, the last one fastest
  int64_t size[kMaxDims] = {1};
  int64_t stride[Operands][kMaxDims] = {};

  // Every row of every operand is one run of adjacent elements.
  BRITTLE_HD bool dense() const {
    if (dims != 1) return false;
    for (int o = 0; o < Operands; ++o) {
      if (stride[o][0] != 1 && row_elements > 1) return false;
    }
    return true;
  }

  // Offset, in elements from the row's start, of the row's element `index`.
  BRITTLE_HD int64_t offset(int operand, int64_t index) const {
    return strided_offset(dims, size, stride[operand], index);
  }
};

struct LayoutOptions {
  bool by_row;         // keep dimension 0 apart, for per-row arguments
  bool logical_order;  // element indices must be row-major (random numbers); otherwise memory order
};

template <int Operands>
Layout<Operands> make_layout(const View (&views)[Operands], LayoutOptions options) {
  struct Dim {
    int64_t size;
    int64_t stride[Operands];
  };
  Dim dims[kMaxDims];
  int count = 0;
  Layout<Operands> layout;
  int first = 0;
  if (options.by_row) {
    layout.rows = views[0].size[0];
    for (int o = 0; o < Operands; ++o) layout.row_stride[o] = views[o].stride[0];
    first = 1;
  }
  for (int d = first; d < views[0].ndim; ++d) {
    layout.row_elements *= views[0].size[d];
    if (views[0].size[d] == 1) continue;
    Dim& dim = dims[count++];
    dim.size = views[0].size[d];
    for (int o = 0; o < Operands; ++o) dim.stride[o] = views[o].stride[d];
  }
  if (!options.logical_order) {
    std::stable_sort(dims, dims + count,
                     [](const Dim& a, const Dim& b) { return a.stride[0] > b.stride[0]; });
  }
  int kept = 0;
  for (int d = 0; d < count; ++d) {
    bool merges = kept > 0;
    for (int o = 0; o < Operands && merges; ++o) {
      merges = dims[kept - 1].stride[o] == dims[d].size * dims[d].stride[o];
    }
    if (merges) {
      Dim& outer = dims[kept - 1];
      outer.size *= dims[d].size;
      for (int o = 0; o < Operands; ++o) outer.stride[o] = dims[d].stride[o];
    } else {
      dims[kept++] = dims[d];
    }
  }
  layout.dims = kept > 0 ? kept : 1;
  for (int d = 0; d < kept; ++d) {
    layout.size[d] = dims[d].size;
    for (int o = 0; o < Operands; ++o) layout.stride[o][d] = dims[d].stride[o];
  }
  return layout;
}

// A run of elements of one row along the fastest dimension.
template <int Operands>
struct Span {
  int64_t row;
  int64_t first;  // index of its first element inside the row
  int64_t count;
  int64_t offset[Operands];  // of that element, from the operand's start
  int64_t stride[Operands];
};

// Calls body(span) for elements [begin, end) of rows * row_elements, in order.
template <int Operands, class Body>
void for_each_span(const Layout<Operands>& layout, int64_t begin, int64_t end, const Body& body) {
  const int last = layout.dims - 1;
  const int64_t line = layout.size[last];
  while (begin < end) {
    Span<Operands> span;
    span.row = begin / layout.row_elements;
    span.first = begin % layout.row_elements;
    span.count = std::min(line - span.first % line, end - begin);
    for (int o = 0; o < Operands; ++o) {
      span.offset[o] = span.row * layout.row_stride[o] + layout.offset(o, span.first);
      span.stride[o] = layout.stride[o][last];
    }
    body(span);
    begin += span.count;
  }
}

// A double for every row, or one for all of them. Per row because samples of one batch may be at
// different epsilons; double because 8 bytes a row are nothing and lose nothing.
struct RowValue {
  double scalar = 0.0;
  const double* per_row = nullptr;
  BRITTLE_HD double at(int64_t row) const { return per_row ? per_row[row] : scalar; }
};

// A float, or a float64 array [N] on the operands' device.
struct RowArgument {
  double scalar = 0.0;
  const View* per_row = nullptr;
};

}  // namespace brittle
