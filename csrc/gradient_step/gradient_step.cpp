// The front of the room: checks what a door hands over, finds the simplest walk, picks the device.

#include "gradient_step/gradient_step.h"

#include <cmath>
#include <limits>
#include <string>

#include "common/check.h"

namespace brittle {
namespace {

void check_floating(const char* op, const char* name, const View& view) {
  if (view.dtype == Dtype::other) {
    fail(op, name, " must be float32, float64, float16 or bfloat16; got ", view.dtype_name);
  }
}

void check_same_device(const char* op, const char* name, const View& view, const char* like_name,
                       const View& like) {
  const auto text = [](const View& v) {
    return v.device == Device::cpu ? std::string("cpu") : "cuda:" + std::to_string(v.device_index);
  };
  if (view.device != like.device || view.device_index != like.device_index) {
    fail(op, name, " must be on ", like_name, "'s device ", text(like), "; got ", text(view));
  }
}

void check_like(const char* op, const char* name, const View& view, const char* like_name,
                const View& like) {
  bool same = view.ndim == like.ndim;
  for (int d = 0; same && d < view.ndim; ++d) same = view.size[d] == like.size[d];
  if (!same)
    fail(op, name, " must have ", like_name, "'s shape ", like.shape(), "; got ", view.shape());
  if (view.dtype != like.dtype) {
    fail(op, name, " must have ", like_name, "'s dtype ", like.dtype_name, "; got ",
         view.dtype_name);
  }
  check_same_device(op, name, view, like_name, like);
}

void check_writable(const char* op, const char* name, const View& view) {
  for (int d = 0; d < view.ndim; ++d) {
    if (view.size[d] > 1 && view.stride[d] == 0 && view.elements() > 0) {
      fail(op, name, " must not be expanded: several of its elements share one place in memory");
    }
  }
}

void check_bounds(const char* op, double lo, double hi) {
  if (!(lo < hi)) fail(op, "bounds must be (lo, hi) with lo < hi; got (", lo, ", ", hi, ")");
}

// Device values are not read back: the attacks check theirs once, not at every step.
RowValue check_row_value(const char* op, const char* name, const RowArgument& argument,
                         const View& like, const char* like_name) {
  if (argument.per_row == nullptr) {
    if (!(argument.scalar >= 0.0)) fail(op, name, " must be >= 0; got ", argument.scalar);
    return {argument.scalar, nullptr};
  }
  const View& view = *argument.per_row;
  const int64_t rows = like.ndim > 0 ? like.size[0] : 1;
  if (view.ndim != 1 || view.size[0] != rows || like.ndim == 0) {
    fail(op, name, " must be a scalar or [N]; got shape ", view.shape(), " for N = ", rows);
  }
  if (view.dtype != Dtype::float64) {
    fail(op, name, " must be float64 when given per row; got ", view.dtype_name);
  }
  if (rows > 1 && view.stride[0] != 1) fail(op, name, " must be contiguous when given per row");
  check_same_device(op, name, view, like_name, like);
  const double* values = static_cast<const double*>(view.data);
  if (view.device == Device::cpu) {
    for (int64_t row = 0; row < rows; ++row) {
      if (!(values[row] >= 0.0)) {
        fail(op, name, " must be >= 0; got ", values[row], " in row ", row);
      }
    }
  }
  return {0.0, values};
}

[[noreturn]] void fail_without_cuda(const char* op) {
  fail(op,
       "this build has no CUDA kernels; install nvcc and reinstall brittle with BRITTLE_CUDA=ON");
}

}  // namespace

void linf_step_(const View& adv, const View& grad, const View& clean, const RowArgument& step_size,
                const RowArgument& eps, double lo, double hi, Projection projection,
                const Execution& execution) {
  const char* op = "linf_step_";
  check_floating(op, "adv", adv);
  check_like(op, "grad", grad, "adv", adv);
  check_like(op, "clean", clean, "adv", adv);
  check_writable(op, "adv", adv);
  check_bounds(op, lo, hi);
  LinfStep step;
  step.step_size = check_row_value(op, "step_size", step_size, adv, "adv");
  step.eps = check_row_value(op, "eps", eps, adv, "adv");
  if (adv.elements() == 0) return;
  step.adv = adv.data;
  step.grad = grad.data;
  step.clean = clean.data;
  const bool by_row = step.step_size.per_row != nullptr || step.eps.per_row != nullptr;
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
  check_writable(op, "out", out);
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
  check_writable(op, "out", out);
  check_bounds(op, lo, hi);
  LinfStart start;
  start.eps = check_row_value(op, "eps", eps, clean, "clean");
  if (eps.per_row == nullptr && std::isinf(eps.scalar)) {
    fail(op, "eps must be finite: there is no uniform point in an infinite ball; got ", eps.scalar);
  }
  if (draw < 0 || draw > std::numeric_limits<uint32_t>::max()) {
    fail(op, "draw must be in [0, 2^32); got ", draw);
  }
  start.sample_ids = nullptr;
  if (sample_ids != nullptr) {
    if (sample_ids->ndim != 1 || sample_ids->size[0] != clean.size[0]) {
      fail(op, "sample_ids must be [N]; got ", sample_ids->shape(), " for N = ", clean.size[0]);
    }
    if (std::string(sample_ids->dtype_name) != "int64") {
      fail(op, "sample_ids must be int64; got ", sample_ids->dtype_name);
    }
    if (clean.size[0] > 1 && sample_ids->stride[0] != 1) fail(op, "sample_ids must be contiguous");
    check_same_device(op, "sample_ids", *sample_ids, "clean", clean);
    start.sample_ids = static_cast<const int64_t*>(sample_ids->data);
  }
  if (clean.elements() == 0) return;
  start.clean = clean.data;
  start.out = out.data;
  start.layout = make_layout<2>({clean, out}, {true, true});
  if (start.layout.row_elements > (int64_t{1} << 34)) {
    fail(op, "a sample may have at most 2^34 elements; got ", start.layout.row_elements);
  }
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
