// The torch door: every operator of brittle, and all that torch needs to know of each.
//
// Operators write into a tensor the caller gives and return nothing; the Python wrappers allocate.
// The implementations are registered beside their checks, in the rooms' *_torch.cpp.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(brittle, m) {
  // gradient_step. `exact` chooses the projection; per-row arguments are float64 [N]; trace is
  // int64 [N, 3] (common/trace.h).
  m.def(
      "linf_step_(Tensor(a!) adv, Tensor grad, Tensor clean, float step_size, float eps, "
      "float lo, float hi, bool exact, Tensor(b!)? trace=None) -> ()");
  m.def(
      "linf_step_.rows(Tensor(a!) adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps, "
      "float lo, float hi, bool exact, Tensor(b!)? trace=None) -> ()");
  m.def(
      "sign_sweep(Tensor x, Tensor grad, float[] eps, float lo, float hi, bool keep_ball, "
      "Tensor(a!) out) -> ()");
  m.def(
      "linf_start(Tensor clean, float eps, int seed, Tensor? sample_ids, int draw, "
      "float lo, float hi, Tensor(a!) out) -> ()");
  m.def(
      "linf_start.rows(Tensor clean, Tensor eps, int seed, Tensor? sample_ids, int draw, "
      "float lo, float hi, Tensor(a!) out) -> ()");
  // noise. `kind` counts brittle::Noise; row_scale, float64 [N], replaces scale.
  m.def(
      "noise(Tensor x, int kind, float scale, Tensor? row_scale, int seed, Tensor? sample_ids, "
      "int draw, float lo, float hi) -> Tensor");
  m.def(
      "noise_out(Tensor x, int kind, float scale, Tensor? row_scale, int seed, Tensor? sample_ids, "
      "int draw, float lo, float hi, Tensor(a!) out) -> ()");
  m.def(
      "noise_backward(Tensor grad, Tensor x, int kind, float scale, Tensor? row_scale, int seed, "
      "Tensor? sample_ids, int draw, float lo, float hi) -> Tensor");
  m.def(
      "in_ball(Tensor x, float eps, Tensor? row_eps, int norm, bool surface, int seed, "
      "Tensor? sample_ids, int draw, float lo, float hi, Tensor(a!) out) -> ()");
}
