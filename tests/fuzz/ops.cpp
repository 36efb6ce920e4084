// Calls the ops of torch.ops.maskrcnn_scratch with arguments made from libFuzzer's bytes.
//
// Arguments start as ones that fit together, so that kernels run; then some are replaced by others
// of the same type, so that checks run too. An op that is not listed below gets arbitrary arguments
// of its schema's types. A refusal is an exception; anything else that goes wrong is found by
// AddressSanitizer and UBSan, with which csrc is compiled.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

namespace {

using c10::IValue;
using Shape = std::vector<int64_t>;
using Arguments = std::vector<IValue>;
using Bytes = FuzzedDataProvider;

constexpr int64_t kInts[] = {INT64_MIN, INT32_MIN, -2,        -1,        0,        1,
                             INT32_MAX, 1LL << 31, 1LL << 32, 1LL << 62, INT64_MAX};
constexpr double kFloats[] = {0.0,  -0.0, 1e-40, 0.5, 1e6,      -1e6,
                              1e18, 1e30, -1e30, NAN, INFINITY, -INFINITY};

double any_float(Bytes& bytes) {
  const int value = bytes.ConsumeIntegral<uint8_t>();
  if (value < 12) return kFloats[value];
  return (value - 80) / 8.0;
}

// Small ones are sizes and counts that a kernel can work on in a short time.
int64_t any_int(Bytes& bytes) {
  if (bytes.ConsumeIntegralInRange(0, 3) == 0) return bytes.PickValueInArray(kInts);
  return bytes.ConsumeIntegralInRange<int64_t>(0, 40);
}

at::ScalarType any_dtype(Bytes& bytes) {
  return bytes.PickValueInArray({at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kLong,
                                 at::kInt, at::kByte, at::kBool, at::kComplexFloat});
}

// The same values in another layout: rows swapped with columns, channels last, every second element
// of a larger tensor, one element repeated, or the last part of a larger tensor.
at::Tensor in_some_layout(Bytes& bytes, const at::Tensor& tensor) {
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

at::Tensor floats(Bytes& bytes, const Shape& shape, at::ScalarType dtype = at::kFloat) {
  return in_some_layout(bytes, filled(bytes, shape, dtype, [&] { return any_float(bytes); }));
}

at::Tensor below(Bytes& bytes, const Shape& shape, int64_t end) {
  const auto index = [&] { return double(bytes.ConsumeIntegralInRange<int64_t>(0, end - 1)); };
  return in_some_layout(bytes, filled(bytes, shape, at::kLong, index));
}

at::Tensor any_tensor(Bytes& bytes) {
  Shape shape(bytes.ConsumeIntegralInRange(0, 5));
  for (int64_t& side : shape) side = bytes.ConsumeIntegralInRange(0, 5);
  const at::ScalarType dtype = any_dtype(bytes);
  if (at::isFloatingType(dtype)) return floats(bytes, shape, dtype);
  return in_some_layout(
      bytes, filled(bytes, shape, at::kLong, [&] { return double(any_int(bytes)); }).to(dtype));
}

int64_t size(Bytes& bytes, int64_t first, int64_t last) {
  return bytes.ConsumeIntegralInRange<int64_t>(first, last);
}

at::ScalarType real_dtype(Bytes& bytes) {
  return bytes.PickValueInArray({at::kFloat, at::kFloat, at::kDouble});
}

Arguments conv3x3(Bytes& bytes) {
  const int64_t in = 16 * size(bytes, 1, 2), out = 32 * size(bytes, 1, 2);
  const Shape input{size(bytes, 0, 2), in, size(bytes, 0, 12), size(bytes, 0, 12)};
  const int64_t tiles = bytes.ConsumeBool() ? 16 : 36;
  return {floats(bytes, input), floats(bytes, {tiles, out / 32, in, 32}), floats(bytes, {out}),
          bytes.ConsumeBool()};
}

Arguments conv3x3_weight_gradient(Bytes& bytes) {
  const int64_t in = 16 * size(bytes, 1, 2), out = 32 * size(bytes, 1, 2);
  const int64_t images = size(bytes, 0, 2), height = size(bytes, 0, 12), width = size(bytes, 0, 12);
  return {floats(bytes, {images, in, height, width}), floats(bytes, {images, out, height, width})};
}

Arguments decode_boxes(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  const int64_t images = size(bytes, 0, 3), rows = size(bytes, 1, 40), boxes = size(bytes, 0, 40);
  const int64_t anchors = size(bytes, 1, 40);
  return {floats(bytes, {images, rows, 4}, dtype),
          below(bytes, {images, boxes}, rows),
          floats(bytes, {bytes.ConsumeBool() ? images : 1, anchors, 4}, dtype),
          below(bytes, {images, boxes}, anchors),
          below(bytes, {images, 2}, 2000),
          c10::List<double>({any_float(bytes), any_float(bytes), 5.0, 5.0}),
          any_float(bytes),
          any_float(bytes)};
}

Arguments max_iou(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  return {floats(bytes, {size(bytes, 1, 70), 4}, dtype),
          floats(bytes, {size(bytes, 1, 300), 4}, dtype), bytes.ConsumeBool()};
}

struct Rois {
  int64_t count, images, levels;
  at::Tensor rois, level;
  c10::List<double> scales{};
};

Rois some_rois(Bytes& bytes, at::ScalarType dtype) {
  Rois some{.count = size(bytes, 0, 6), .images = size(bytes, 1, 3), .levels = size(bytes, 1, 4)};
  some.rois = floats(bytes, {some.count, 5}, dtype).clone();
  some.rois.select(1, 0).copy_(below(bytes, {some.count}, some.images));
  some.level = below(bytes, {some.count}, some.levels);
  for (int64_t l = 0; l < some.levels; ++l)
    some.scales.push_back(std::ldexp(1, -size(bytes, 0, 6)));
  return some;
}

at::ScalarType coordinates_of(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

int64_t sampling_ratio(Bytes& bytes) {
  return size(bytes, -1, 5);
}

Arguments multiscale_roi_align(Bytes& bytes) {
  const auto dtype = bytes.PickValueInArray({at::kFloat, at::kDouble, at::kHalf, at::kBFloat16});
  const Rois some = some_rois(bytes, coordinates_of(dtype));
  const int64_t channels = size(bytes, 0, 40);
  c10::List<at::Tensor> features;
  for (int64_t l = 0; l < some.levels; ++l) {
    const Shape shape{some.images, channels, size(bytes, 1, 12), size(bytes, 1, 12)};
    features.push_back(floats(bytes, shape, dtype));
  }
  return {features,
          some.rois,
          some.level,
          some.scales,
          size(bytes, 1, 8),
          size(bytes, 1, 8),
          sampling_ratio(bytes),
          bytes.ConsumeBool(),
          bytes.ConsumeBool()};
}

Arguments multiscale_roi_align_backward(Bytes& bytes) {
  const auto dtype = bytes.PickValueInArray({at::kFloat, at::kDouble, at::kHalf, at::kBFloat16});
  const Rois some = some_rois(bytes, coordinates_of(dtype));
  const Shape shape{some.count, size(bytes, 0, 40), size(bytes, 1, 8), size(bytes, 1, 8)};
  c10::List<int64_t> heights, widths;
  for (int64_t l = 0; l < some.levels; ++l) {
    heights.push_back(size(bytes, 1, 40));
    widths.push_back(size(bytes, 1, 40));
  }
  return {floats(bytes, shape, dtype),
          some.rois,
          some.level,
          some.scales,
          heights,
          widths,
          some.images,
          sampling_ratio(bytes),
          bytes.ConsumeBool(),
          bytes.ConsumeBool(),
          bytes.ConsumeBool()};
}

Arguments nms_padded(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  const int64_t images = size(bytes, 0, 3), boxes = size(bytes, 0, 200), groups = size(bytes, 1, 9);
  return {floats(bytes, {images, boxes, 4}, dtype),
          floats(bytes, {images, boxes}, dtype),
          below(bytes, {images, boxes}, groups),
          any_float(bytes),
          size(bytes, 0, 250),
          groups,
          size(bytes, 0, 1000)};
}

Arguments paste_masks(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  const int64_t count = size(bytes, 0, 4), side = size(bytes, 1, 30);
  return {floats(bytes, {count, 1, side, side}, dtype), floats(bytes, {count, 4}, dtype),
          size(bytes, 0, 200), size(bytes, 0, 200)};
}

Arguments paste_masks_packed(Bytes& bytes) {
  const int64_t count = size(bytes, 0, 4), side = size(bytes, 1, 30);
  return {floats(bytes, {count, 1, side, side}), floats(bytes, {count, 4}), size(bytes, 0, 200),
          size(bytes, 0, 200), any_float(bytes)};
}

Arguments top_k_of_levels(Bytes& bytes) {
  c10::List<int64_t> sizes;
  int64_t sum = 0;
  for (int64_t l = size(bytes, 1, 5); l > 0; --l) {
    sizes.push_back(size(bytes, 0, 100));
    sum += sizes[sizes.size() - 1];
  }
  return {floats(bytes, {size(bytes, 0, 3), sum}, real_dtype(bytes)), sizes, size(bytes, 0, 120)};
}

const std::map<std::string, std::function<Arguments(Bytes&)>> kFitting = {
    {"conv3x3", conv3x3},
    {"conv3x3_weight_gradient", conv3x3_weight_gradient},
    {"decode_boxes", decode_boxes},
    {"max_iou", max_iou},
    {"multiscale_roi_align", multiscale_roi_align},
    {"multiscale_roi_align_backward", multiscale_roi_align_backward},
    {"nms_padded", nms_padded},
    {"paste_masks", paste_masks},
    {"paste_masks_packed", paste_masks_packed},
    {"top_k_of_levels", top_k_of_levels},
};

IValue any_argument(Bytes& bytes, const c10::Argument& argument) {
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

std::vector<c10::OperatorHandle> ops_of_this_project() {
  std::vector<c10::OperatorHandle> ops;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.starts_with("maskrcnn_scratch::")) {
      ops.push_back(*c10::Dispatcher::singleton().findSchema(name));
    }
  }
  std::sort(ops.begin(), ops.end(), [](const auto& a, const auto& b) {
    return a.operator_name().name < b.operator_name().name;
  });
  TORCH_CHECK(ops.size() >= kFitting.size(), "ops are missing");
  return ops;
}

// Reads every element, so that a result larger than its memory is found.
void read_all(const IValue& value) {
  if (value.isTensor()) {
    const at::Tensor tensor = value.toTensor();
    if (tensor.numel() < 100'000) (void)tensor.contiguous().view(-1).to(at::kDouble).sum();
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) read_all(tensor);
  }
}

}  // namespace

// csrc/schema.cpp is a Python module too. Nothing imports it here, and there is no Python to link.
extern "C" void* PyModule_Create2(void*, int) {
  std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) {
  static const std::vector<c10::OperatorHandle> ops = [] {
    at::set_num_threads(1);
    return ops_of_this_project();
  }();
  Bytes bytes(data, length);
  const c10::OperatorHandle& op = ops[bytes.ConsumeIntegralInRange<size_t>(0, ops.size() - 1)];
  const auto& schema = op.schema().arguments();
  const auto fitting =
      kFitting.find(op.operator_name().name.substr(sizeof("maskrcnn_scratch::") - 1));
  try {
    Arguments arguments(schema.size());
    // The first bytes say which arguments do not fit.
    std::vector<bool> replaced(schema.size(), fitting == kFitting.end());
    for (int count = bytes.ConsumeIntegralInRange(0, 5) - 2; count > 0; --count) {
      replaced[bytes.ConsumeIntegralInRange<size_t>(0, schema.size() - 1)] = true;
    }
    if (fitting != kFitting.end()) arguments = fitting->second(bytes);
    if (arguments.size() != schema.size()) {
      std::cerr << op.operator_name().name << ": this file does not know its arguments\n";
      std::abort();
    }
    for (size_t i = 0; i < schema.size(); ++i) {
      if (replaced[i]) arguments[i] = any_argument(bytes, schema[i]);
    }
    op.callBoxed(arguments);
    for (const IValue& result : arguments) read_all(result);
  } catch (const std::exception&) {  // refused
  }
  return 0;
}
