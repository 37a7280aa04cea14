// The front of pairwise_cosine: checks what a door hands over. The GPU's kernels are Triton's, and
// are registered and checked in Python.

#include "pairwise_cosine/pairwise_cosine.h"

#include "common/operands.h"

namespace brittle {
namespace {

void check_cpu(const char* op, const View& a) {
  if (a.device == Device::cpu) return;
  fail(op, "a must be on the CPU here: the GPU's kernels are Triton's, behind torch");
}

}  // namespace

void check_pairwise(const char* op, const View& a, const View* b) {
  check_floating(op, "a", a);
  if (a.ndim != 2) fail(op, "a must be [N, D]; got shape ", a.shape());
  if (b == nullptr) return;
  if (b->ndim != 2) fail(op, "b must be [M, D]; got shape ", b->shape());
  if (b->dtype != a.dtype) {
    fail(op, "b must have a's dtype ", a.dtype_name, "; got ", b->dtype_name);
  }
  if (b->size[1] != a.size[1]) {
    fail(op, "b must have a's ", a.size[1], " columns; got shape ", b->shape());
  }
  check_same_device(op, "b", *b, "a", a);
}

void pairwise_cosine(const View& a, const View* b, const View& out, const Execution& execution) {
  const char* op = "pairwise_cosine";
  check_pairwise(op, a, b);
  const View& columns = b != nullptr ? *b : a;
  if (out.ndim != 2 || out.size[0] != a.size[0] || out.size[1] != columns.size[0]) {
    fail(op, "out must have shape [", a.size[0], ", ", columns.size[0], "]; got ", out.shape());
  }
  if (out.dtype != cosine_dtype(a.dtype)) {
    fail(op, "out must be ", a.dtype == Dtype::float64 ? "float64" : "float32", "; got ",
         out.dtype_name);
  }
  check_same_device(op, "out", out, "a", a);
  check_written(op, "out", out, {}, {{"a", &a}, {"b", b}});
  check_cpu(op, a);
  if (out.elements() == 0) return;
  pairwise_cosine_cpu({a, columns, b == nullptr, out}, execution);
}

void check_topk(const View& a, const View* b, int64_t k) {
  const char* op = "pairwise_cosine_topk";
  check_pairwise(op, a, b);
  const int64_t most = b != nullptr ? b->size[0] : a.size[0] > 0 ? a.size[0] - 1 : 0;
  if (k < 0 || k > most) {
    fail(op, "k must be in [0, ", most, "], the number of ",
         b != nullptr ? "rows of b" : "other rows", "; got ", k);
  }
}

void pairwise_cosine_topk(const View& a, const View* b, int64_t k, const View& cosines,
                          const View& indices, const Execution& execution) {
  const char* op = "pairwise_cosine_topk";
  check_topk(a, b, k);
  for (const auto& [name, view] :
       {std::pair("cosines", &cosines), std::pair("indices", &indices)}) {
    if (view->ndim != 2 || view->size[0] != a.size[0] || view->size[1] != k) {
      fail(op, name, " must have shape [", a.size[0], ", ", k, "]; got ", view->shape());
    }
    if (view->elements() > 0 &&
        ((k > 1 && view->stride[1] != 1) || (a.size[0] > 1 && view->stride[0] != k))) {
      fail(op, name, " must be contiguous");
    }
  }
  if (cosines.dtype != cosine_dtype(a.dtype)) {
    fail(op, "cosines must be ", a.dtype == Dtype::float64 ? "float64" : "float32", "; got ",
         cosines.dtype_name);
  }
  if (std::string(indices.dtype_name) != "int64") {
    fail(op, "indices must be int64; got ", indices.dtype_name);
  }
  check_cpu(op, a);
  if (cosines.elements() == 0) return;
  pairwise_cosine_topk_cpu({a, b != nullptr ? *b : a, b == nullptr, k, cosines.data,
                            static_cast<int64_t*>(indices.data)},
                           execution);
}

}  // namespace brittle
