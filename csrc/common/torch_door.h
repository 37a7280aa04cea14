// What every room's torch file needs: a tensor as a View, and where to run.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/check.h"
#include "common/device.h"
#include "common/layout.h"
#include "common/operands.h"

namespace brittle {

inline View view_of(const char* op, const char* name, const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  View view;
  view.ndim = static_cast<int>(tensor.dim());
  if (view.ndim > kMaxDims) {
    fail(op, name, " must have at most ", kMaxDims, " dimensions; got ", view.ndim);
  }
  for (int d = 0; d < view.ndim; ++d) {
    view.size[d] = tensor.size(d);
    view.stride[d] = tensor.stride(d);
  }
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      view.dtype = Dtype::float32;
      view.dtype_name = "float32";
      break;
    case ScalarType::Double:
      view.dtype = Dtype::float64;
      view.dtype_name = "float64";
      break;
    case ScalarType::Half:
      view.dtype = Dtype::float16;
      view.dtype_name = "float16";
      break;
    case ScalarType::BFloat16:
      view.dtype = Dtype::bfloat16;
      view.dtype_name = "bfloat16";
      break;
    case ScalarType::Byte: view.dtype_name = "uint8"; break;
    case ScalarType::Char: view.dtype_name = "int8"; break;
    case ScalarType::Short: view.dtype_name = "int16"; break;
    case ScalarType::Int: view.dtype_name = "int32"; break;
    case ScalarType::Long: view.dtype_name = "int64"; break;
    case ScalarType::Bool: view.dtype_name = "bool"; break;
    case ScalarType::ComplexFloat: view.dtype_name = "complex64"; break;
    case ScalarType::ComplexDouble: view.dtype_name = "complex128"; break;
    default: view.dtype_name = "an unsupported dtype"; break;
  }
  view.item = tensor.element_size();
  view.data = tensor.data_ptr();
  view.device = tensor.is_cuda() ? Device::cuda : Device::cpu;
  view.device_index = view.device == Device::cuda ? tensor.get_device_index() : 0;
  check_aligned(op, name, view);
  return view;
}

// torch's current stream on a device. Its getter lives in libtorch_cuda, which a CPU-only torch
// does not have, so it is looked up in the library that torch has loaded rather than linked.
inline void* current_cuda_stream(int device_index) {
  using Getter = int32_t (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Getter>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream")
                                            : nullptr);
  }();
  void* stream = nullptr;
  if (getter == nullptr || getter(device_index, &stream) != 0) {
    throw std::runtime_error("brittle: torch's current CUDA stream could not be read");
  }
  return stream;
}

// Where to run an operator whose output is `output`: torch's own thread pool, or its current
// stream.
inline Execution execution_for(const View& output) {
  Execution execution;
  execution.device = output.device;
  if (output.device == Device::cuda) {
    execution.device_index = output.device_index;
    execution.stream = current_cuda_stream(output.device_index);
  } else {
    execution.parallel_for = [](int64_t count, int64_t grain, RangeBody body, void* context) {
      torch::stable::parallel_for(0, count, grain,
                                  [&](int64_t begin, int64_t end) { body(begin, end, context); });
    };
  }
  return execution;
}

}  // namespace brittle
