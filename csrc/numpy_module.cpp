// The numpy door: the same kernels on NumPy arrays, and the facts of this build. No torch.
//
// The test suite compiles this file a second time with BRITTLE_NUMPY_DEVICE set to Device::cuda and
// the emulated CUDA kernels behind it, so the arrays take the CUDA route.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/check.h"
#include "common/operands.h"
#include "common/simd.h"
#include "common/threads.h"
#include "gradient_step/gradient_step.h"
#include "gradient_step/l1_step.h"
#include "gradient_step/row_step.h"
#include "noise/noise.h"
#include "pairwise_cosine/pairwise_cosine.h"
#if defined(BRITTLE_SELF_TEST)
#include "domain_hash.h"
#include "self_test.h"
#endif

namespace py = pybind11;

namespace brittle {
namespace {

constexpr Device kDevice = BRITTLE_NUMPY_DEVICE;

View view_of(const char* op, const char* name, const py::array& array) {
  View view;
  if (array.ndim() > kMaxDims) {
    fail(op, name, " must have at most ", kMaxDims, " dimensions; got ", array.ndim());
  }
  view.ndim = static_cast<int>(array.ndim());
  const std::string dtype = py::str(array.dtype().attr("name"));
  const bool native = array.dtype().attr("isnative").cast<bool>();
  static constexpr struct {
    const char* name;
    Dtype dtype;
  } kNames[] = {
      {"float32", Dtype::float32},   {"float64", Dtype::float64}, {"float16", Dtype::float16},
      {"bfloat16", Dtype::bfloat16}, {"uint8", Dtype::other},     {"int8", Dtype::other},
      {"int16", Dtype::other},       {"int32", Dtype::other},     {"int64", Dtype::other},
      {"bool", Dtype::other},        {"complex64", Dtype::other}, {"complex128", Dtype::other}};
  view.dtype_name = "an unsupported dtype";
  for (const auto& known : kNames) {
    if (dtype != known.name) continue;
    view.dtype_name = native ? known.name : "a dtype of foreign byte order";
    view.dtype = native ? known.dtype : Dtype::other;
  }
  // Elements may have no bytes at all, as those of a structured dtype without fields have.
  view.item = std::max<int64_t>(1, array.itemsize());
  for (int d = 0; d < view.ndim; ++d) {
    view.size[d] = array.shape(d);
    if (array.strides(d) % view.item != 0) {
      fail(op, name, " must have strides that are multiples of its item size; got ",
           array.strides(d));
    }
    view.stride[d] = array.strides(d) / view.item;
  }
  view.data = const_cast<void*>(array.data());
  view.device = kDevice;
  check_aligned(op, name, view);
  return view;
}

View writable_view_of(const char* op, const char* name, const py::array& array) {
  if (!array.writeable()) fail(op, name, " must be writable; got a read-only array");
  return view_of(op, name, array);
}

Execution execution() {
  Execution execution;
  execution.device = kDevice;
  execution.parallel_for = plain_threads;
  return execution;
}

using Number = std::variant<double, py::array>;

// Holds the View that a RowArgument points to.
struct RowHolder {
  RowHolder(const char* op, const char* name, const Number& number) {
    if (const double* scalar = std::get_if<double>(&number)) {
      argument.scalar = *scalar;
    } else {
      view = view_of(op, name, std::get<py::array>(number));
      argument.per_row = &view;
    }
  }
  RowHolder(const RowHolder&) = delete;
  RowHolder& operator=(const RowHolder&) = delete;
  View view;
  RowArgument argument;
};

void numpy_linf_step(const py::array& adv, const py::array& grad, const py::array& clean,
                     const Number& step_size, const Number& eps, double lo, double hi, bool exact,
                     const std::optional<py::array>& trace) {
  const char* op = "linf_step_";
  const View a = writable_view_of(op, "adv", adv);
  const View g = view_of(op, "grad", grad);
  const View c = view_of(op, "clean", clean);
  const RowHolder steps(op, "step_size", step_size);
  const RowHolder balls(op, "eps", eps);
  View traced;
  if (trace) traced = writable_view_of(op, "trace", *trace);
  const py::gil_scoped_release unlocked;
  linf_step_(a, g, c, steps.argument, balls.argument, lo, hi,
             exact ? Projection::exact : Projection::difference, trace ? &traced : nullptr,
             execution());
}

void numpy_sign_sweep(const py::array& x, const py::array& grad, const std::vector<double>& eps,
                      double lo, double hi, bool keep_ball, const py::array& out) {
  const char* op = "sign_sweep";
  const View input = view_of(op, "x", x);
  const View g = view_of(op, "grad", grad);
  const View target = writable_view_of(op, "out", out);
  const py::gil_scoped_release unlocked;
  sign_sweep(input, g, eps, lo, hi, keep_ball, target, execution());
}

void numpy_linf_start(const py::array& clean, const Number& eps, int64_t seed,
                      const std::optional<py::array>& sample_ids, int64_t draw, double lo,
                      double hi, const py::array& out) {
  const char* op = "linf_start";
  const View input = view_of(op, "clean", clean);
  const View target = writable_view_of(op, "out", out);
  const RowHolder balls(op, "eps", eps);
  View ids;
  if (sample_ids) ids = view_of(op, "sample_ids", *sample_ids);
  const py::gil_scoped_release unlocked;
  linf_start(input, balls.argument, seed, sample_ids ? &ids : nullptr, draw, lo, hi, target,
             execution());
}

void numpy_l1_step(const py::array& adv, const py::array& grad, const py::array& clean,
                   const Number& step_size, const Number& eps, const Number& k, double lo,
                   double hi, const std::optional<py::array>& trace) {
  const char* op = "l1_step_";
  const View a = writable_view_of(op, "adv", adv);
  const View g = view_of(op, "grad", grad);
  const View c = view_of(op, "clean", clean);
  const RowHolder steps(op, "step_size", step_size);
  const RowHolder balls(op, "eps", eps);
  const RowHolder counts(op, "k", k);
  View traced;
  if (trace) traced = writable_view_of(op, "trace", *trace);
  const py::gil_scoped_release unlocked;
  l1_step_(a, g, c, steps.argument, balls.argument, counts.argument, lo, hi,
           trace ? &traced : nullptr, execution());
}

void numpy_l2_step(const py::array& adv, const py::array& grad, const py::array& clean,
                   const Number& step_size, const Number& eps, double lo, double hi,
                   int64_t projection, int64_t floor, const std::optional<py::array>& trace) {
  const char* op = "l2_step_";
  const View a = writable_view_of(op, "adv", adv);
  const View g = view_of(op, "grad", grad);
  const View c = view_of(op, "clean", clean);
  const RowHolder steps(op, "step_size", step_size);
  const RowHolder balls(op, "eps", eps);
  View traced;
  if (trace) traced = writable_view_of(op, "trace", *trace);
  const py::gil_scoped_release unlocked;
  l2_step_(a, g, c, steps.argument, balls.argument, lo, hi, projection, floor,
           trace ? &traced : nullptr, execution());
}

void numpy_momentum_step(const py::array& adv, const py::array& grad, const py::array& momentum,
                         const py::array& clean, const Number& step_size, const Number& eps,
                         double decay, double lo, double hi, int64_t normalize, bool exact,
                         const std::optional<py::array>& norm,
                         const std::optional<py::array>& trace) {
  const char* op = "momentum_step_";
  const View a = writable_view_of(op, "adv", adv);
  const View g = view_of(op, "grad", grad);
  const View m = writable_view_of(op, "momentum", momentum);
  const View c = view_of(op, "clean", clean);
  const RowHolder steps(op, "step_size", step_size);
  const RowHolder balls(op, "eps", eps);
  View norms, traced;
  if (norm) norms = view_of(op, "norm", *norm);
  if (trace) traced = writable_view_of(op, "trace", *trace);
  const py::gil_scoped_release unlocked;
  momentum_step_(a, g, m, c, steps.argument, balls.argument, decay, lo, hi, normalize,
                 exact ? Projection::exact : Projection::difference, norm ? &norms : nullptr,
                 trace ? &traced : nullptr, execution());
}

void numpy_noise(const std::optional<py::array>& grad, const py::array& x, int64_t kind,
                 const Number& scale, int64_t seed, const std::optional<py::array>& sample_ids,
                 int64_t draw, double lo, double hi, const py::array& out) {
  const char* op = "noise";
  const View input = view_of(op, "x", x);
  const View target = writable_view_of(op, "out", out);
  const RowHolder scales(op, "scale", scale);
  View gradient, ids;
  if (grad) gradient = view_of(op, "grad", *grad);
  if (sample_ids) ids = view_of(op, "sample_ids", *sample_ids);
  const py::gil_scoped_release unlocked;
  noise(grad ? &gradient : nullptr, input, kind, scales.argument, seed, sample_ids ? &ids : nullptr,
        draw, lo, hi, target, execution());
}

void numpy_in_ball(const py::array& x, const Number& eps, int64_t norm, bool surface, int64_t seed,
                   const std::optional<py::array>& sample_ids, int64_t draw, double lo, double hi,
                   const py::array& out) {
  const char* op = "in_ball";
  const View input = view_of(op, "x", x);
  const View target = writable_view_of(op, "out", out);
  const RowHolder radii(op, "eps", eps);
  View ids;
  if (sample_ids) ids = view_of(op, "sample_ids", *sample_ids);
  const py::gil_scoped_release unlocked;
  in_ball(input, radii.argument, norm, surface, seed, sample_ids ? &ids : nullptr, draw, lo, hi,
          target, execution());
}

// A matrix of cosines, or of what goes with them, for two matrices that have been checked.
py::array cosines_for(const View& a, int64_t columns) {
  const std::vector<py::ssize_t> shape{a.size[0], columns};
  if (cosine_dtype(a.dtype) == Dtype::float64) return py::array_t<double>(shape);
  return py::array_t<float>(shape);
}

py::array numpy_pairwise_cosine(const py::array& a, const std::optional<py::array>& b,
                                const std::optional<py::array>& out) {
  const char* op = "pairwise_cosine";
  const View left = view_of(op, "a", a);
  View right;
  if (b) right = view_of(op, "b", *b);
  check_pairwise(op, left, b ? &right : nullptr);
  const py::array result = out ? *out : cosines_for(left, b ? right.size[0] : left.size[0]);
  const View target = writable_view_of(op, "out", result);
  const py::gil_scoped_release unlocked;
  pairwise_cosine(left, b ? &right : nullptr, target, execution());
  return result;
}

py::tuple numpy_pairwise_cosine_topk(const py::array& a, const std::optional<py::array>& b,
                                     int64_t k) {
  const char* op = "pairwise_cosine_topk";
  const View left = view_of(op, "a", a);
  View right;
  if (b) right = view_of(op, "b", *b);
  check_topk(left, b ? &right : nullptr, k);
  const py::array cosines = cosines_for(left, k);
  const py::array_t<int64_t> indices(std::vector<py::ssize_t>{left.size[0], k});
  const View values = view_of(op, "cosines", cosines);
  const View whose = view_of(op, "indices", indices);
  {
    const py::gil_scoped_release unlocked;
    pairwise_cosine_topk(left, b ? &right : nullptr, k, values, whose, execution());
  }
  return py::make_tuple(cosines, indices);
}

std::vector<uint32_t> numpy_philox4x32(const std::vector<uint32_t>& counter,
                                       const std::vector<uint32_t>& key) {
  if (counter.size() != 4 || key.size() != 2) {
    fail("philox4x32", "counter must be 4 words and key 2; got ", counter.size(), " and ",
         key.size());
  }
  const Philox4 random =
      philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {random.word, random.word + 4};
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = BRITTLE_COMPILER;
  facts["cuda"] = kCudaBuilt;
  facts["cuda_compiler"] = BRITTLE_CUDA_COMPILER;
  facts["cuda_architectures"] = BRITTLE_CUDA_ARCHITECTURES;
  facts["torch_target"] = "2.10";
  facts["simd_best"] = simd::name(simd::best());
  facts["simd_in_use"] = simd::name(simd::in_use());
  facts["threads"] = thread_count();
  return facts;
}

}  // namespace
}  // namespace brittle

PYBIND11_MODULE(BRITTLE_NUMPY_MODULE, m) {
  using namespace brittle;
  m.def("linf_step_", &numpy_linf_step, py::arg("adv"), py::arg("grad"), py::arg("clean"),
        py::arg("step_size"), py::arg("eps"), py::arg("lo"), py::arg("hi"), py::arg("exact"),
        py::arg("trace") = py::none());
  m.def("sign_sweep", &numpy_sign_sweep);
  m.def("linf_start", &numpy_linf_start);
  m.def("l1_step_", &numpy_l1_step, py::arg("adv"), py::arg("grad"), py::arg("clean"),
        py::arg("step_size"), py::arg("eps"), py::arg("k"), py::arg("lo"), py::arg("hi"),
        py::arg("trace") = py::none());
  m.def("l2_step_", &numpy_l2_step, py::arg("adv"), py::arg("grad"), py::arg("clean"),
        py::arg("step_size"), py::arg("eps"), py::arg("lo"), py::arg("hi"), py::arg("projection"),
        py::arg("floor"), py::arg("trace") = py::none());
  m.def("momentum_step_", &numpy_momentum_step, py::arg("adv"), py::arg("grad"),
        py::arg("momentum"), py::arg("clean"), py::arg("step_size"), py::arg("eps"),
        py::arg("decay"), py::arg("lo"), py::arg("hi"), py::arg("normalize"), py::arg("exact"),
        py::arg("norm") = py::none(), py::arg("trace") = py::none());
  m.def("noise", &numpy_noise);
  m.def("in_ball", &numpy_in_ball);
  m.def("pairwise_cosine", &numpy_pairwise_cosine);
  m.def("pairwise_cosine_topk", &numpy_pairwise_cosine_topk);
  m.def("philox4x32", &numpy_philox4x32);
  m.def("build_facts", &build_facts);
#if defined(BRITTLE_SELF_TEST)
  m.def("block_sum", [](const py::array_t<double>& in, int64_t blocks) {
    py::array_t<double> out(blocks);
    emulated_block_sum(in.data(), in.size(), out.mutable_data(), blocks);
    return out;
  });
  m.def("suffix_sum", [](const py::array_t<double>& in) {
    py::array_t<double> out(in.size());
    emulated_suffix_sum(in.data(), out.mutable_data());
    return out;
  });
  m.def("domain_hash", &domain_hash, py::call_guard<py::gil_scoped_release>());
  m.def("skipped_barrier", [] {
    py::array_t<double> out(96);
    emulated_skipped_barrier(out.mutable_data());
    return out;
  });
#endif
}
