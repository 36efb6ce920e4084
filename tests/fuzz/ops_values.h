// Values of the types in an op's schema, made from libFuzzer's bytes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/function_schema.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace fuzz {

using c10::IValue;
using Shape = std::vector<int64_t>;
using Arguments = std::vector<IValue>;
using Bytes = FuzzedDataProvider;

inline constexpr int64_t kInts[] = {INT64_MIN, INT32_MIN, -2,        -1,        0,        1,
                                    INT32_MAX, 1LL << 31, 1LL << 32, 1LL << 62, INT64_MAX};
inline constexpr double kFloats[] = {0.0,  -0.0, 1e-40, 0.5, 1e6,      -1e6,
                                     1e18, 1e30, -1e30, NAN, INFINITY, -INFINITY};

inline double any_float(Bytes& bytes) {
  const int value = bytes.ConsumeIntegral<uint8_t>();
  if (value < 12) return kFloats[value];
  return (value - 80) / 8.0;
}

// Small ones are sizes and counts that a kernel can work on in a short time.
inline int64_t any_int(Bytes& bytes) {
  if (bytes.ConsumeIntegralInRange(0, 3) == 0) return bytes.PickValueInArray(kInts);
  return bytes.ConsumeIntegralInRange<int64_t>(0, 40);
}

inline at::ScalarType any_dtype(Bytes& bytes) {
  return bytes.PickValueInArray({at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong,
                                 at::kInt, at::kByte, at::kBool, at::kComplexFloat});
}

// The same values in another layout: rows swapped with columns, channels last, every second element
// of a larger tensor, one element repeated, or the last part of a larger tensor.
inline at::Tensor in_some_layout(Bytes& bytes, const at::Tensor& tensor) {
  switch (bytes.ConsumeIntegralInRange(0, 9)) {
    case 0:
      return tensor.dim() < 2 ? tensor : tensor.transpose(-1, -2).contiguous().transpose(-1, -2);
    case 1:
      return tensor.dim() == 4 ? tensor.contiguous(at::MemoryFormat::ChannelsLast) : tensor;
    case 2:
      return tensor.dim() == 0 ? tensor : tensor.repeat_interleave(2, -1).slice(-1, 0, {}, 2);
    case 3:
      return tensor.numel() == 0 ? tensor : tensor.flatten()[0].expand(tensor.sizes());
    case 4:
      return tensor.dim() == 0 ? tensor : at::cat({tensor, tensor}).slice(0, tensor.size(0));
    default:
      return tensor;
  }
}

// A few values, repeated until the tensor is full.
template <typename Value>
at::Tensor filled(Bytes& bytes, const Shape& shape, at::ScalarType dtype, const Value& value) {
  const at::Tensor tensor = at::empty(shape, at::kDouble);
  const int64_t count = tensor.numel();
  const int64_t period = std::min<int64_t>(count, bytes.ConsumeIntegralInRange(1, 40));
  double* const data = tensor.data_ptr<double>();
  for (int64_t i = 0; i < count; ++i) data[i] = i < period ? value() : data[i - period];
  return tensor.to(dtype);
}

inline at::Tensor floats(Bytes& bytes, const Shape& shape, at::ScalarType dtype = at::kFloat) {
  return in_some_layout(bytes, filled(bytes, shape, dtype, [&] { return any_float(bytes); }));
}

inline at::Tensor below(Bytes& bytes, const Shape& shape, int64_t end) {
  const auto index = [&] { return double(bytes.ConsumeIntegralInRange<int64_t>(0, end - 1)); };
  return in_some_layout(bytes, filled(bytes, shape, at::kLong, index));
}

inline at::Tensor any_tensor(Bytes& bytes) {
  Shape shape(bytes.ConsumeIntegralInRange(0, 5));
  for (int64_t& side : shape) side = bytes.ConsumeIntegralInRange(0, 5);
  const at::ScalarType dtype = any_dtype(bytes);
  if (at::isFloatingType(dtype)) return floats(bytes, shape, dtype);
  return in_some_layout(
      bytes, filled(bytes, shape, at::kLong, [&] { return double(any_int(bytes)); }).to(dtype));
}

inline int64_t size(Bytes& bytes, int64_t first, int64_t last) {
  return bytes.ConsumeIntegralInRange<int64_t>(first, last);
}

inline IValue any_argument(Bytes& bytes, const c10::Argument& argument) {
  const auto list = [&](auto values, const auto& value) {
    for (int64_t i = size(bytes, 0, 4); i > 0; --i) values.push_back(value(bytes));
    return IValue(values);
  };
  const c10::Type& type = *argument.type();
  switch (type.kind()) {
    case c10::TypeKind::TensorType:
      return any_tensor(bytes);
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      // Each step of a valid ratio is a sample: this one can be millions.
      return argument.name() == "sampling_ratio" ? size(bytes, -3, 90) : any_int(bytes);
    case c10::TypeKind::FloatType:
      return any_float(bytes);
    case c10::TypeKind::BoolType:
      return bytes.ConsumeBool();
    case c10::TypeKind::StringType:
      return bytes.ConsumeRandomLengthString(40);
    case c10::TypeKind::ListType:
      switch (type.containedType(0)->kind()) {
        case c10::TypeKind::TensorType:
          return list(c10::List<at::Tensor>(), any_tensor);
        case c10::TypeKind::FloatType:
          return list(c10::List<double>(), any_float);
        case c10::TypeKind::StringType:
          return list(c10::List<std::string>(),
                      [](Bytes& from) { return from.ConsumeRandomLengthString(40); });
        default:
          return list(c10::List<int64_t>(), any_int);
      }
    default:
      std::fprintf(stderr, "no argument for the type of %s\n", argument.name().c_str());
      std::abort();
  }
}

}  // namespace fuzz
