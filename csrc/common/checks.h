// Argument checks. Anybody can call torch.ops.maskrcnn_scratch.* with any arguments, so every
// relation that a kernel relies on is checked before it runs. A failed check is a RuntimeError in
// Python, one line that names the argument.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
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

// Sides of images and maps fit in 31 bits.
inline void check_side(int64_t side, const char* name) {
  CHECK_ARGUMENT(side >= 0, name, " must not be negative, it is ", side);
  CHECK_ARGUMENT(side <= INT32_MAX, name, " must be at most ", INT32_MAX, ", it is ", side);
}

// The bytes of a tensor of these sizes can be counted, so no offset into it overflows. A size of 0
// counts as 1: strides are products of the other sizes.
inline void check_numel(std::initializer_list<int64_t> sizes, const char* name) {
  int64_t bytes = sizeof(double);  // of the widest element
  for (const int64_t size : sizes) {
    const bool overflows = size < 0 || __builtin_mul_overflow(bytes, size > 0 ? size : 1, &bytes);
    CHECK_ARGUMENT(!overflows, name, " has too many elements");
  }
}

}  // namespace maskrcnn
