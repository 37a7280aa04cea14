// gradient_step behind the torch dispatcher. One function per overload serves CPU and CUDA: the
// front picks the kernels by the tensors' device, and says what to install where there are none.

#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/torch_door.h"
#include "gradient_step/gradient_step.h"
#include "gradient_step/l1_step.h"
#include "gradient_step/row_step.h"

namespace brittle {
namespace {

using torch::stable::Tensor;

// The View of a tensor that may be left out.
class OptionalView {
 public:
  OptionalView(const char* op, const char* name, const std::optional<Tensor>& tensor)
      : given_(tensor.has_value()) {
    if (given_) view_ = view_of(op, name, *tensor);
  }
  const View* get() const { return given_ ? &view_ : nullptr; }

 private:
  bool given_;
  View view_;
};

Projection projection_for(bool exact) {
  return exact ? Projection::exact : Projection::difference;
}

void step(const Tensor& adv, const Tensor& grad, const Tensor& clean, const RowArgument& step_size,
          const RowArgument& eps, double lo, double hi, bool exact,
          const std::optional<Tensor>& trace) {
  const char* op = "linf_step_";
  const View out = view_of(op, "adv", adv);
  const OptionalView traced(op, "trace", trace);
  linf_step_(out, view_of(op, "grad", grad), view_of(op, "clean", clean), step_size, eps, lo, hi,
             projection_for(exact), traced.get(), execution_for(out));
}

void torch_linf_step(Tensor adv, Tensor grad, Tensor clean, double step_size, double eps, double lo,
                     double hi, bool exact, std::optional<Tensor> trace) {
  step(adv, grad, clean, {step_size, nullptr}, {eps, nullptr}, lo, hi, exact, trace);
}

void torch_linf_step_rows(Tensor adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps,
                          double lo, double hi, bool exact, std::optional<Tensor> trace) {
  const View steps = view_of("linf_step_", "step_size", step_size);
  const View balls = view_of("linf_step_", "eps", eps);
  step(adv, grad, clean, {0.0, &steps}, {0.0, &balls}, lo, hi, exact, trace);
}

void torch_sign_sweep(Tensor x, Tensor grad, std::vector<double> eps, double lo, double hi,
                      bool keep_ball, Tensor out) {
  const char* op = "sign_sweep";
  const View target = view_of(op, "out", out);
  sign_sweep(view_of(op, "x", x), view_of(op, "grad", grad), eps, lo, hi, keep_ball, target,
             execution_for(target));
}

void start(const Tensor& clean, const RowArgument& eps, int64_t seed,
           const std::optional<Tensor>& sample_ids, int64_t draw, double lo, double hi,
           const Tensor& out) {
  const char* op = "linf_start";
  const View target = view_of(op, "out", out);
  View ids;
  if (sample_ids.has_value()) ids = view_of(op, "sample_ids", *sample_ids);
  linf_start(view_of(op, "clean", clean), eps, seed, sample_ids.has_value() ? &ids : nullptr, draw,
             lo, hi, target, execution_for(target));
}

void torch_linf_start(Tensor clean, double eps, int64_t seed, std::optional<Tensor> sample_ids,
                      int64_t draw, double lo, double hi, Tensor out) {
  start(clean, {eps, nullptr}, seed, sample_ids, draw, lo, hi, out);
}

void torch_linf_start_rows(Tensor clean, Tensor eps, int64_t seed, std::optional<Tensor> sample_ids,
                           int64_t draw, double lo, double hi, Tensor out) {
  const View balls = view_of("linf_start", "eps", eps);
  start(clean, {0.0, &balls}, seed, sample_ids, draw, lo, hi, out);
}

void sparse_step(const Tensor& adv, const Tensor& grad, const Tensor& clean,
                 const RowArgument& step_size, const RowArgument& eps, const RowArgument& k,
                 double lo, double hi, const std::optional<Tensor>& trace) {
  const char* op = "l1_step_";
  const View out = view_of(op, "adv", adv);
  const OptionalView traced(op, "trace", trace);
  l1_step_(out, view_of(op, "grad", grad), view_of(op, "clean", clean), step_size, eps, k, lo, hi,
           traced.get(), execution_for(out));
}

void torch_l1_step(Tensor adv, Tensor grad, Tensor clean, double step_size, double eps, double k,
                   double lo, double hi, std::optional<Tensor> trace) {
  sparse_step(adv, grad, clean, {step_size, nullptr}, {eps, nullptr}, {k, nullptr}, lo, hi, trace);
}

void torch_l1_step_rows(Tensor adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps,
                        Tensor k, double lo, double hi, std::optional<Tensor> trace) {
  const View steps = view_of("l1_step_", "step_size", step_size);
  const View balls = view_of("l1_step_", "eps", eps);
  const View counts = view_of("l1_step_", "k", k);
  sparse_step(adv, grad, clean, {0.0, &steps}, {0.0, &balls}, {0.0, &counts}, lo, hi, trace);
}

void l2(const Tensor& adv, const Tensor& grad, const Tensor& clean, const RowArgument& step_size,
        const RowArgument& eps, double lo, double hi, int64_t projection, int64_t floor,
        const std::optional<Tensor>& trace) {
  const char* op = "l2_step_";
  const View out = view_of(op, "adv", adv);
  const OptionalView traced(op, "trace", trace);
  l2_step_(out, view_of(op, "grad", grad), view_of(op, "clean", clean), step_size, eps, lo, hi,
           projection, floor, traced.get(), execution_for(out));
}

void torch_l2_step(Tensor adv, Tensor grad, Tensor clean, double step_size, double eps, double lo,
                   double hi, int64_t projection, int64_t floor, std::optional<Tensor> trace) {
  l2(adv, grad, clean, {step_size, nullptr}, {eps, nullptr}, lo, hi, projection, floor, trace);
}

void torch_l2_step_rows(Tensor adv, Tensor grad, Tensor clean, Tensor step_size, Tensor eps,
                        double lo, double hi, int64_t projection, int64_t floor,
                        std::optional<Tensor> trace) {
  const View steps = view_of("l2_step_", "step_size", step_size);
  const View balls = view_of("l2_step_", "eps", eps);
  l2(adv, grad, clean, {0.0, &steps}, {0.0, &balls}, lo, hi, projection, floor, trace);
}

void momentum(const Tensor& adv, const Tensor& grad, const Tensor& momentum, const Tensor& clean,
              const RowArgument& step_size, const RowArgument& eps, double decay, double lo,
              double hi, int64_t normalize, bool exact, const std::optional<Tensor>& norm,
              const std::optional<Tensor>& trace) {
  const char* op = "momentum_step_";
  const View out = view_of(op, "adv", adv);
  const OptionalView norms(op, "norm", norm), traced(op, "trace", trace);
  momentum_step_(out, view_of(op, "grad", grad), view_of(op, "momentum", momentum),
                 view_of(op, "clean", clean), step_size, eps, decay, lo, hi, normalize,
                 projection_for(exact), norms.get(), traced.get(), execution_for(out));
}

void torch_momentum_step(Tensor adv, Tensor grad, Tensor kept, Tensor clean, double step_size,
                         double eps, double decay, double lo, double hi, int64_t normalize,
                         bool exact, std::optional<Tensor> norm, std::optional<Tensor> trace) {
  momentum(adv, grad, kept, clean, {step_size, nullptr}, {eps, nullptr}, decay, lo, hi, normalize,
           exact, norm, trace);
}

void torch_momentum_step_rows(Tensor adv, Tensor grad, Tensor kept, Tensor clean, Tensor step_size,
                              Tensor eps, double decay, double lo, double hi, int64_t normalize,
                              bool exact, std::optional<Tensor> norm, std::optional<Tensor> trace) {
  const View steps = view_of("momentum_step_", "step_size", step_size);
  const View balls = view_of("momentum_step_", "eps", eps);
  momentum(adv, grad, kept, clean, {0.0, &steps}, {0.0, &balls}, decay, lo, hi, normalize, exact,
           norm, trace);
}

void register_all(torch::stable::detail::StableLibrary& m) {
  m.impl("linf_step_", TORCH_BOX(&torch_linf_step));
  m.impl("linf_step_.rows", TORCH_BOX(&torch_linf_step_rows));
  m.impl("sign_sweep", TORCH_BOX(&torch_sign_sweep));
  m.impl("linf_start", TORCH_BOX(&torch_linf_start));
  m.impl("linf_start.rows", TORCH_BOX(&torch_linf_start_rows));
  m.impl("l1_step_", TORCH_BOX(&torch_l1_step));
  m.impl("l1_step_.rows", TORCH_BOX(&torch_l1_step_rows));
  m.impl("l2_step_", TORCH_BOX(&torch_l2_step));
  m.impl("l2_step_.rows", TORCH_BOX(&torch_l2_step_rows));
  m.impl("momentum_step_", TORCH_BOX(&torch_momentum_step));
  m.impl("momentum_step_.rows", TORCH_BOX(&torch_momentum_step_rows));
}

STABLE_TORCH_LIBRARY_IMPL(brittle, CPU, m) {
  register_all(m);
}
STABLE_TORCH_LIBRARY_IMPL(brittle, CUDA, m) {
  register_all(m);
}

}  // namespace
}  // namespace brittle
