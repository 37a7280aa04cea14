// The front of the room: checks what a door hands over, finds the simplest walk, picks the device.

#include "gradient_step/gradient_step.h"

#include <limits>
#include <string>

#include "common/operands.h"
#include "common/trace.h"

namespace brittle {
void linf_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
                const RowArgument& eps, double lo, double hi, Projection projection,
                const View* trace, const Execution& execution) {
  const char* op = "linf_step_";
  check_floating(op, "adv", adv);
  check_like(op, "grad", grad, "adv", adv);
  check_like(op, "clean", clean, "adv", adv);
  check_bounds(op, lo, hi);
  LinfStep step;
  step.step_size = check_row_value(op, "step_size", step_size, adv, "adv");
  step.eps = check_row_value(op, "eps", eps, adv, "adv");
  step.trace = check_trace(op, trace, adv, "adv");
  const Named sizes{"step_size", step_size.per_row}, balls{"eps", eps.per_row};
  check_written(op, "adv", adv, {{"grad", &grad}, {"clean", &clean}}, {sizes, balls});
  if (trace != nullptr) {
    check_written(op, "trace", *trace, {},
                  {{"adv", &adv}, {"grad", &grad}, {"clean", &clean}, sizes, balls});
  }
  if (adv.elements() == 0 && (trace == nullptr || adv.size[0] == 0)) return;
  step.adv = adv.data;
  step.grad = grad.data;
  step.clean = clean.data;
  const bool by_row =
      step.step_size.per_row != nullptr || step.eps.per_row != nullptr || step.trace != nullptr;
  step.layout = make_layout<3>({adv, grad, clean}, {by_row, false});
  step.dtype = adv.dtype;
  step.lo = lo;
  step.hi = hi;
  step.projection = projection;
  if (adv.device == Device::cpu) return linf_step_cpu(step, execution);
  if constexpr (kCudaBuilt) return linf_step_cuda(step, execution);
  fail_without_cuda(op);
}

void sign_sweep(const View& x, const View& grad, const std::vector<double>& eps, double lo,
                double hi, bool keep_ball, const View& out, const Execution& execution) {
  const char* op = "sign_sweep";
  check_floating(op, "x", x);
  check_like(op, "grad", grad, "x", x);
  check_bounds(op, lo, hi);
  if (eps.empty()) fail(op, "eps must hold at least one value; got none");
  for (double value : eps) {
    if (!(value >= 0.0)) fail(op, "eps must be >= 0; got ", value);
  }
  if (out.ndim < 1 || out.size[0] != static_cast<int64_t>(eps.size())) {
    fail(op, "out must be [K, ...] with K = ", eps.size(), " epsilons; got ", out.shape());
  }
  View first = out;  // out[0]
  first.ndim = out.ndim - 1;
  for (int d = 0; d < first.ndim; ++d) {
    first.size[d] = out.size[d + 1];
    first.stride[d] = out.stride[d + 1];
  }
  check_like(op, "each out[k]", first, "x", x);
  // A single epsilon's plane may be x or grad itself; of several, the later ones still read them.
  const std::initializer_list<Named> operands{{"x", &x}, {"grad", &grad}};
  if (eps.size() == 1) {
    check_written(op, "out", first, operands, {});
  } else {
    check_written(op, "out", out, {}, operands);
  }
  if (x.elements() == 0) return;
  SignSweep sweep;
  sweep.x = x.data;
  sweep.grad = grad.data;
  sweep.out = out.data;
  sweep.out_stride = out.stride[0];
  sweep.layout = make_layout<3>({x, grad, first}, {false, false});
  sweep.dtype = x.dtype;
  sweep.eps = eps.data();
  sweep.count = static_cast<int64_t>(eps.size());
  sweep.lo = lo;
  sweep.hi = hi;
  sweep.keep_ball = keep_ball;
  if (x.device == Device::cpu) return sign_sweep_cpu(sweep, execution);
  if constexpr (kCudaBuilt) return sign_sweep_cuda(sweep, execution);
  fail_without_cuda(op);
}

void linf_start(const View& clean, const RowArgument& eps, int64_t seed, const View* sample_ids,
                int64_t draw, double lo, double hi, const View& out, const Execution& execution) {
  const char* op = "linf_start";
  check_floating(op, "clean", clean);
  if (clean.ndim < 1) fail(op, "clean must be [N, ...]; got ", clean.shape());
  check_like(op, "out", out, "clean", clean);
  check_bounds(op, lo, hi);
  LinfStart start;
  start.eps = check_row_value(op, "eps", eps, clean, "clean", true);
  check_draw(op, draw);
  start.sample_ids = check_sample_ids(op, sample_ids, clean, "clean");
  check_written(op, "out", out, {{"clean", &clean}},
                {{"eps", eps.per_row}, {"sample_ids", sample_ids}});
  if (clean.elements() == 0) return;
  start.clean = clean.data;
  start.out = out.data;
  start.layout = make_layout<2>({clean, out}, {true, true});
  check_counter(op, start.layout.row_elements);
  start.dtype = clean.dtype;
  start.seed = static_cast<uint64_t>(seed);
  start.draw = static_cast<uint32_t>(draw);
  start.lo = lo;
  start.hi = hi;
  if (clean.device == Device::cpu) return linf_start_cpu(start, execution);
  if constexpr (kCudaBuilt) return linf_start_cuda(start, execution);
  fail_without_cuda(op);
}

}  // namespace brittle
