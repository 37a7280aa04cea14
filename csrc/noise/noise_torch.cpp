// noise behind the torch dispatcher. One function serves CPU and CUDA: the front picks the kernels.

#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/torch_door.h"
#include "noise/noise.h"

namespace brittle {
namespace {

using torch::stable::Tensor;

void run(const std::optional<Tensor>& grad, const Tensor& x, int64_t kind, double scale,
         const std::optional<Tensor>& row_scale, int64_t seed,
         const std::optional<Tensor>& sample_ids, int64_t draw, double lo, double hi,
         const Tensor& out) {
  const char* op = "noise";
  const View target = view_of(op, "out", out);
  View gradient, scales, ids;
  if (grad.has_value()) gradient = view_of(op, "grad", *grad);
  if (row_scale.has_value()) scales = view_of(op, "scale", *row_scale);
  if (sample_ids.has_value()) ids = view_of(op, "sample_ids", *sample_ids);
  noise(grad.has_value() ? &gradient : nullptr, view_of(op, "x", x), kind,
        {scale, row_scale.has_value() ? &scales : nullptr}, seed,
        sample_ids.has_value() ? &ids : nullptr, draw, lo, hi, target, execution_for(target));
}

void torch_noise_out(Tensor x, int64_t kind, double scale, std::optional<Tensor> row_scale,
                     int64_t seed, std::optional<Tensor> sample_ids, int64_t draw, double lo,
                     double hi, Tensor out) {
  run(std::nullopt, x, kind, scale, row_scale, seed, sample_ids, draw, lo, hi, out);
}

Tensor torch_noise(Tensor x, int64_t kind, double scale, std::optional<Tensor> row_scale,
                   int64_t seed, std::optional<Tensor> sample_ids, int64_t draw, double lo,
                   double hi) {
  Tensor out = torch::stable::empty_like(x);
  run(std::nullopt, x, kind, scale, row_scale, seed, sample_ids, draw, lo, hi, out);
  return out;
}

Tensor torch_noise_backward(Tensor grad, Tensor x, int64_t kind, double scale,
                            std::optional<Tensor> row_scale, int64_t seed,
                            std::optional<Tensor> sample_ids, int64_t draw, double lo, double hi) {
  Tensor out = torch::stable::empty_like(x);
  run(grad, x, kind, scale, row_scale, seed, sample_ids, draw, lo, hi, out);
  return out;
}

void torch_in_ball(Tensor x, double eps, std::optional<Tensor> row_eps, int64_t norm, bool surface,
                   int64_t seed, std::optional<Tensor> sample_ids, int64_t draw, double lo,
                   double hi, Tensor out) {
  const char* op = "in_ball";
  const View target = view_of(op, "out", out);
  View radii, ids;
  if (row_eps.has_value()) radii = view_of(op, "eps", *row_eps);
  if (sample_ids.has_value()) ids = view_of(op, "sample_ids", *sample_ids);
  in_ball(view_of(op, "x", x), {eps, row_eps.has_value() ? &radii : nullptr}, norm, surface, seed,
          sample_ids.has_value() ? &ids : nullptr, draw, lo, hi, target, execution_for(target));
}

void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("noise", TORCH_BOX(&torch_noise));
  m.impl("noise_out", TORCH_BOX(&torch_noise_out));
  m.impl("noise_backward", TORCH_BOX(&torch_noise_backward));
  m.impl("in_ball", TORCH_BOX(&torch_in_ball));
}

STABLE_TORCH_LIBRARY_IMPL(brittle, CPU, m) {
  register_all(m);
}
STABLE_TORCH_LIBRARY_IMPL(brittle, CUDA, m) {
  register_all(m);
}

}  // namespace
}  // namespace brittle
