// The front of the room: checks what a door hands over, picks the device.

#include "noise/noise.h"

#include <cmath>
#include <limits>

#include "common/operands.h"

namespace brittle {
namespace {

// The scale of each kind: its lowest and highest value, the highest included or not.
struct ScaleRange {
  double lo, hi;
  bool hi_included;
  const char* text;
};

ScaleRange scale_range(Noise kind) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  switch (kind) {
    case Noise::salt_and_pepper: return {0.0, 1.0, true, "in [0, 1]"};
    case Noise::dropout: return {0.0, 1.0, false, "in [0, 1)"};
    case Noise::shot: return {std::numeric_limits<double>::min(), 0x1p24, true, "in (0, 2^24]"};
    default: return {0.0, kInfinity, false, "finite and >= 0"};
  }
}

void check_scale(const char* op, Noise kind, const RowArgument& scale, const View& x) {
  const ScaleRange range = scale_range(kind);
  const auto wrong = [&](double v) {
    return !(v >= range.lo && (v < range.hi || (range.hi_included && v == range.hi)));
  };
  if (scale.per_row == nullptr) {
    if (wrong(scale.scalar)) fail(op, "scale must be ", range.text, "; got ", scale.scalar);
  } else if (scale.per_row->device == Device::cpu) {
    const double* values = static_cast<const double*>(scale.per_row->data);
    for (int64_t row = 0; row < x.size[0]; ++row) {
      if (wrong(values[row])) {
        fail(op, "scale must be ", range.text, "; got ", values[row], " in row ", row);
      }
    }
  }
}

}  // namespace

void noise(const View* grad, const View& x, int64_t kind_index, const RowArgument& scale,
           int64_t seed, const View* sample_ids, int64_t draw, double lo, double hi,
           const View& out, const Execution& execution) {
  const char* op = "noise";
  if (kind_index < 0 || kind_index >= kNoiseKinds) {
    fail(op, "kind must be in [0, ", kNoiseKinds, "); got ", kind_index);
  }
  const Noise kind = static_cast<Noise>(kind_index);
  check_floating(op, "x", x);
  if (x.ndim < 1) fail(op, "x must be [N, ...]; got ", x.shape());
  check_like(op, "out", out, "x", x);
  if (grad != nullptr) check_like(op, "grad", *grad, "x", x);
  check_bounds(op, lo, hi);
  if (kind == Noise::salt_and_pepper && !(std::isfinite(lo) && std::isfinite(hi))) {
    fail(op, "bounds must be finite for salt and pepper, which are its values; got (", lo, ", ", hi,
         ")");
  }
  check_draw(op, draw);
  NoiseOp noise_op;
  noise_op.scale = check_row_value(op, "scale", scale, x, "x");
  check_scale(op, kind, scale, x);
  noise_op.sample_ids = check_sample_ids(op, sample_ids, x, "x");
  check_written(op, "out", out, {{"x", &x}, {"grad", grad}},
                {{"scale", scale.per_row}, {"sample_ids", sample_ids}});
  if (x.elements() == 0) return;
  noise_op.grad = grad == nullptr ? nullptr : grad->data;
  noise_op.x = x.data;
  noise_op.out = out.data;
  noise_op.layout = make_layout<3>({grad == nullptr ? x : *grad, x, out}, {true, true});
  check_counter(op, noise_op.layout.row_elements);
  noise_op.dtype = x.dtype;
  noise_op.kind = kind;
  noise_op.seed = static_cast<uint64_t>(seed);
  noise_op.draw = static_cast<uint32_t>(draw);
  noise_op.lo = lo;
  noise_op.hi = hi;
  if (x.device == Device::cpu) return noise_cpu(noise_op, execution);
  if constexpr (kCudaBuilt) return noise_cuda(noise_op, execution);
  fail_without_cuda(op);
}

void in_ball(const View& x, const RowArgument& eps, int64_t norm, bool surface, int64_t seed,
             const View* sample_ids, int64_t draw, double lo, double hi, const View& out,
             const Execution& execution) {
  const char* op = "in_ball";
  if (norm != 1 && norm != 2) fail(op, "norm must be 1 or 2; got ", norm);
  check_floating(op, "x", x);
  if (x.ndim < 1) fail(op, "x must be [N, ...]; got ", x.shape());
  check_like(op, "out", out, "x", x);
  check_bounds(op, lo, hi);
  check_draw(op, draw);
  BallOp ball;
  ball.eps = check_row_value(op, "eps", eps, x, "x", true);
  ball.sample_ids = check_sample_ids(op, sample_ids, x, "x");
  check_written(op, "out", out, {{"x", &x}}, {{"eps", eps.per_row}, {"sample_ids", sample_ids}});
  if (x.elements() == 0) return;
  ball.x = x.data;
  ball.out = out.data;
  ball.layout = make_layout<2>({x, out}, {true, true});
  check_counter(op, ball.layout.row_elements + 4);  // the last block is the radius's own
  ball.dtype = x.dtype;
  ball.norm = static_cast<int>(norm);
  ball.surface = surface;
  ball.seed = static_cast<uint64_t>(seed);
  ball.draw = static_cast<uint32_t>(draw);
  ball.lo = lo;
  ball.hi = hi;
  if (x.device == Device::cpu) return in_ball_cpu(ball, execution);
  if constexpr (kCudaBuilt) return in_ball_cuda(ball, execution);
  fail_without_cuda(op);
}

}  // namespace brittle
