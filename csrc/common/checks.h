// Argument checks: one line that names the culprit, raised as RuntimeError in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

// CHECK_ARGUMENT(condition, parts of the message...)
#define CHECK_ARGUMENT(condition, ...) \
  if (!(condition)) maskrcnn::invalid_argument(__VA_ARGS__)

namespace maskrcnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void invalid_argument(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::string shape = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    shape += (d ? ", " : "") + std::to_string(tensor.size(d));
  }
  return shape + "]";
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  CHECK_ARGUMENT(tensor.scalar_type() == dtype, name, " must be ", toString(dtype), ", not ",
                 toString(tensor.scalar_type()));
}

inline void check_dim(const Tensor& tensor, int64_t dim, const char* name, const char* shape) {
  CHECK_ARGUMENT(tensor.dim() == dim, name, " must be ", shape, ", not ", shape_of(tensor));
}

inline void check_same_device(const Tensor& tensor,
                              const Tensor& other,
                              const char* name,
                              const char* other_name) {
  CHECK_ARGUMENT(tensor.device() == other.device(), name, " and ", other_name,
                 " must be on the same device");
}

}  // namespace maskrcnn
