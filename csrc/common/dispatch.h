// From a dtype known at run time to a C++ type.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "checks.h"

namespace maskrcnn {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
struct TypeTag {
  using type = T;
};

// The type of sums: float for half types, else the type itself.
template <typename T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<Half> {
  using type = float;
};
template <>
struct Accumulate<BFloat16> {
  using type = float;
};
template <typename T>
using accumulate_t = typename Accumulate<T>::type;

// The dtype of accumulate_t. Coordinates that belong to data of `dtype` have it too.
inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(TypeTag<T>{}) with T = float or double.
template <typename F>
decltype(auto) dispatch_float_double(ScalarType dtype, const char* name, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    default:
      invalid_argument(name, " must be float32 or float64, not ", toString(dtype));
  }
}

// Calls f(TypeTag<T>{}) with T = float, double, Half or BFloat16.
template <typename F>
decltype(auto) dispatch_floating(ScalarType dtype, const char* name, F&& f) {
  switch (dtype) {
    case ScalarType::Half:
      return f(TypeTag<Half>{});
    case ScalarType::BFloat16:
      return f(TypeTag<BFloat16>{});
    default:
      return dispatch_float_double(dtype, name, f);
  }
}

}  // namespace maskrcnn
