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
  // k, a count, is a float like the other arguments that may be per row.
  m.def(
      "l1_step_(Tensor(a!) adv, Tensor grad, Tensor clean, float step_size, float eps, float k, "
      "float lo, float hi, Tensor(b!)? trace=None) -> ()");
  m.def(
      "l1_step_.rows(Tensor(a!) adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps, "
      "Tensor k, float lo, float hi, Tensor(b!)? trace=None) -> ()");
  // projection and floor count brittle::L2Projection and brittle::NormFloor.
  m.def(
      "l2_step_(Tensor(a!) adv, Tensor grad, Tensor clean, float step_size, float eps, "
      "float lo, float hi, int projection, int floor, Tensor(b!)? trace=None) -> ()");
  m.def(
      "l2_step_.rows(Tensor(a!) adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps, "
      "float lo, float hi, int projection, int floor, Tensor(b!)? trace=None) -> ()");
  // normalize counts brittle::Normalize.
  m.def(
      "momentum_step_(Tensor(a!) adv, Tensor grad, Tensor(b!) momentum, Tensor clean, "
      "float step_size, float eps, float decay, float lo, float hi, int normalize, bool exact, "
      "Tensor? norm=None, Tensor(c!)? trace=None) -> ()");
  m.def(
      "momentum_step_.rows(Tensor(a!) adv, Tensor grad, Tensor(b!) momentum, Tensor clean, "
      "Tensor step_size, Tensor eps, float decay, float lo, float hi, int normalize, bool exact, "
      "Tensor? norm=None, Tensor(c!)? trace=None) -> ()");
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
  // pairwise_cosine. Without b, every row of a with every other.
  m.def("pairwise_cosine(Tensor a, Tensor? b=None) -> Tensor");
  m.def("pairwise_cosine_out(Tensor a, Tensor? b, Tensor(a!) out) -> ()");
  m.def("pairwise_cosine_topk(Tensor a, Tensor? b, int k) -> (Tensor, Tensor)");
}
