// pairwise_cosine behind the torch dispatcher, for the CPU. The CUDA key is Triton's
// (python/brittle/triton).

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/torch_door.h"
#include "pairwise_cosine/pairwise_cosine.h"

namespace brittle {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The views of a and, where given, of b.
struct Operands {
  Operands(const char* op, const Tensor& left, const std::optional<Tensor>& right)
      : a(view_of(op, "a", left)), given(right.has_value()) {
    if (given) other = view_of(op, "b", *right);
    check_pairwise(op, a, b());
  }
  const View* b() const { return given ? &other : nullptr; }
  int64_t columns() const { return given ? other.size[0] : a.size[0]; }
  ScalarType result() const {
    return cosine_dtype(a.dtype) == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
  }
  View a, other;
  bool given;
};

void torch_pairwise_cosine_out(Tensor a, std::optional<Tensor> b, Tensor out) {
  const char* op = "pairwise_cosine";
  const Operands operands(op, a, b);
  const View target = view_of(op, "out", out);
  pairwise_cosine(operands.a, operands.b(), target, execution_for(target));
}

Tensor torch_pairwise_cosine(Tensor a, std::optional<Tensor> b) {
  const char* op = "pairwise_cosine";
  const Operands operands(op, a, b);
  Tensor out =
      torch::stable::new_empty(a, {operands.a.size[0], operands.columns()}, operands.result());
  const View target = view_of(op, "out", out);
  pairwise_cosine(operands.a, operands.b(), target, execution_for(target));
  return out;
}

std::tuple<Tensor, Tensor> torch_pairwise_cosine_topk(Tensor a, std::optional<Tensor> b,
                                                      int64_t k) {
  const char* op = "pairwise_cosine_topk";
  const Operands operands(op, a, b);
  check_topk(operands.a, operands.b(), k);
  Tensor cosines = torch::stable::new_empty(a, {operands.a.size[0], k}, operands.result());
  Tensor indices = torch::stable::new_empty(a, {operands.a.size[0], k}, ScalarType::Long);
  const View values = view_of(op, "cosines", cosines);
  pairwise_cosine_topk(operands.a, operands.b(), k, values, view_of(op, "indices", indices),
                       execution_for(values));
  return {cosines, indices};
}

STABLE_TORCH_LIBRARY_IMPL(brittle, CPU, m) {
  m.impl("pairwise_cosine", TORCH_BOX(&torch_pairwise_cosine));
  m.impl("pairwise_cosine_out", TORCH_BOX(&torch_pairwise_cosine_out));
  m.impl("pairwise_cosine_topk", TORCH_BOX(&torch_pairwise_cosine_topk));
}

}  // namespace
}  // namespace brittle
