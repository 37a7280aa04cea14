// The front of l1_step_: checks what a door hands over, finds the simplest walk, picks the device.

#include "gradient_step/l1_step.h"

#include "common/operands.h"

namespace brittle {

void l1_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
              const RowArgument& eps, const RowArgument& k, double lo, double hi, const View* trace,
              const Execution& execution) {
  const char* op = "l1_step_";
  check_floating(op, "adv", adv);
  if (adv.ndim < 1) fail(op, "adv must be [N, ...]; got ", adv.shape());
  check_like(op, "grad", grad, "adv", adv);
  check_like(op, "clean", clean, "adv", adv);
  check_bounds(op, lo, hi);
  L1Step step;
  step.step_size = check_row_value(op, "step_size", step_size, adv, "adv", true);
  step.eps = check_row_value(op, "eps", eps, adv, "adv");
  step.k = check_row_value(op, "k", k, adv, "adv", false, 1.0);
  step.trace = check_trace(op, trace, adv, "adv");
  const Named sizes{"step_size", step_size.per_row}, balls{"eps", eps.per_row};
  const Named counts{"k", k.per_row};
  check_written(op, "adv", adv, {{"grad", &grad}, {"clean", &clean}}, {sizes, balls, counts});
  if (trace != nullptr) {
    check_written(op, "trace", *trace, {},
                  {{"adv", &adv}, {"grad", &grad}, {"clean", &clean}, sizes, balls, counts});
  }
  if (adv.elements() == 0 && (trace == nullptr || adv.size[0] == 0)) return;
  step.adv = adv.data;
  step.grad = grad.data;
  step.clean = clean.data;
  step.layout = make_layout<3>({adv, grad, clean}, {true, false});
  step.dtype = adv.dtype;
  step.lo = lo;
  step.hi = hi;
  if (adv.device == Device::cpu) return l1_step_cpu(step, execution);
  if constexpr (kCudaBuilt) return l1_step_cuda(step, execution);
  fail_without_cuda(op);
}

}  // namespace brittle
