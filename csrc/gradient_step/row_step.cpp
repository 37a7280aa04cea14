// The front of the steps that need a norm of each row.

#include "gradient_step/row_step.h"

#include "common/operands.h"

namespace brittle {
namespace {

void check_rows(const char* op, const View& adv) {
  if (adv.ndim < 1) fail(op, "adv must be [N, ...]; got ", adv.shape());
}

// An enumerator's number.
void check_choice(const char* op, const char* name, int64_t choice, int64_t last) {
  if (choice < 0 || choice > last) {
    fail(op, name, " must be in [0, ", last, "]; got ", choice);
  }
}

// float64 [N] beside `adv`, or none. Its values are not judged: what is not positive and finite
// means a row without a norm.
const double* check_norm(const char* op, const View* norm, const View& adv) {
  if (norm == nullptr) return nullptr;
  if (norm->ndim != 1 || norm->size[0] != adv.size[0]) {
    fail(op, "norm must be [N]; got ", norm->shape(), " for N = ", adv.size[0]);
  }
  if (norm->dtype != Dtype::float64) fail(op, "norm must be float64; got ", norm->dtype_name);
  if (adv.size[0] > 1 && norm->stride[0] != 1) fail(op, "norm must be contiguous");
  check_same_device(op, "norm", *norm, "adv", adv);
  return static_cast<const double*>(norm->data);
}

}  // namespace

void l2_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
              const RowArgument& eps, double lo, double hi, int64_t projection, int64_t floor,
              const View* trace, const Execution& execution) {
  const char* op = "l2_step_";
  check_floating(op, "adv", adv);
  check_rows(op, adv);
  check_like(op, "grad", grad, "adv", adv);
  check_like(op, "clean", clean, "adv", adv);
  check_bounds(op, lo, hi);
  check_choice(op, "projection", projection, static_cast<int64_t>(L2Projection::clip_project));
  check_choice(op, "floor", floor, static_cast<int64_t>(NormFloor::cleverhans));
  L2Step step;
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
  step.layout = make_layout<3>({adv, grad, clean}, {true, false});
  step.dtype = adv.dtype;
  step.lo = lo;
  step.hi = hi;
  step.projection = static_cast<L2Projection>(projection);
  step.floor = static_cast<NormFloor>(floor);
  if (adv.device == Device::cpu) return l2_step_cpu(step, execution);
  if constexpr (kCudaBuilt) return l2_step_cuda(step, execution);
  fail_without_cuda(op);
}

void momentum_step_(const View& adv, const View& grad, const View& momentum, const View& clean,
                    const RowArgument& step_size, const RowArgument& eps, double decay, double lo,
                    double hi, int64_t normalize, Projection projection, const View* norm,
                    const View* trace, const Execution& execution) {
  const char* op = "momentum_step_";
  check_floating(op, "adv", adv);
  check_rows(op, adv);
  check_like(op, "grad", grad, "adv", adv);
  check_like(op, "momentum", momentum, "adv", adv);
  check_like(op, "clean", clean, "adv", adv);
  check_bounds(op, lo, hi);
  if (!(decay >= 0.0) || std::isinf(decay)) {
    fail(op, "decay must be finite and >= 0; got ", decay);
  }
  check_choice(op, "normalize", normalize, static_cast<int64_t>(Normalize::sign));
  MomentumStep step;
  step.step_size = check_row_value(op, "step_size", step_size, adv, "adv");
  step.eps = check_row_value(op, "eps", eps, adv, "adv");
  step.norm = check_norm(op, norm, adv);
  step.trace = check_trace(op, trace, adv, "adv");
  const Named sizes{"step_size", step_size.per_row}, balls{"eps", eps.per_row};
  const Named norms{"norm", norm};
  check_written(op, "adv", adv, {{"grad", &grad}, {"clean", &clean}}, {sizes, balls, norms});
  check_written(op, "momentum", momentum, {{"grad", &grad}},
                {{"adv", &adv}, {"clean", &clean}, sizes, balls, norms});
  if (trace != nullptr) {
    check_written(op, "trace", *trace, {},
                  {{"adv", &adv},
                   {"grad", &grad},
                   {"momentum", &momentum},
                   {"clean", &clean},
                   sizes,
                   balls,
                   norms});
  }
  if (adv.elements() == 0 && (trace == nullptr || adv.size[0] == 0)) return;
  step.adv = adv.data;
  step.grad = grad.data;
  step.momentum = momentum.data;
  step.clean = clean.data;
  step.layout = make_layout<4>({adv, grad, momentum, clean}, {true, false});
  step.dtype = adv.dtype;
  step.decay = decay;
  step.lo = lo;
  step.hi = hi;
  step.normalize = static_cast<Normalize>(normalize);
  step.projection = projection;
  if (adv.device == Device::cpu) return momentum_step_cpu(step, execution);
  if constexpr (kCudaBuilt) return momentum_step_cuda(step, execution);
  fail_without_cuda(op);
}

}  // namespace brittle
