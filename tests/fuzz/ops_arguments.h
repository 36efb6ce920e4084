// Arguments that fit together, for each op.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <string>

#include "ops_values.h"

namespace fuzz {

inline at::ScalarType real_dtype(Bytes& bytes) {
  return bytes.PickValueInArray({at::kFloat, at::kFloat, at::kDouble});
}

inline Arguments conv3x3(Bytes& bytes) {
  const int64_t in = 16 * size(bytes, 1, 2), out = 32 * size(bytes, 1, 2);
  const Shape input{size(bytes, 0, 2), in, size(bytes, 0, 12), size(bytes, 0, 12)};
  const int64_t tiles = bytes.ConsumeBool() ? 16 : 36;
  return {floats(bytes, input), floats(bytes, {tiles, out / 32, in, 32}), floats(bytes, {out}),
          bytes.ConsumeBool()};
}

inline Arguments conv3x3_weight_gradient(Bytes& bytes) {
  const int64_t in = 16 * size(bytes, 1, 2), out = 32 * size(bytes, 1, 2);
  const int64_t images = size(bytes, 0, 2), height = size(bytes, 0, 12), width = size(bytes, 0, 12);
  return {floats(bytes, {images, in, height, width}), floats(bytes, {images, out, height, width})};
}

inline Arguments decode_boxes(Bytes& bytes) {
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

inline Arguments max_iou(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  return {floats(bytes, {size(bytes, 1, 70), 4}, dtype),
          floats(bytes, {size(bytes, 1, 300), 4}, dtype), bytes.ConsumeBool()};
}

struct Rois {
  int64_t count, images, levels;
  at::Tensor rois, level;
  c10::List<double> scales{};
};

inline Rois some_rois(Bytes& bytes, at::ScalarType dtype) {
  Rois some{.count = size(bytes, 0, 6), .images = size(bytes, 1, 3), .levels = size(bytes, 1, 4)};
  some.rois = floats(bytes, {some.count, 5}, dtype).clone();
  some.rois.select(1, 0).copy_(below(bytes, {some.count}, some.images));
  some.level = below(bytes, {some.count}, some.levels);
  for (int64_t l = 0; l < some.levels; ++l)
    some.scales.push_back(std::ldexp(1, -size(bytes, 0, 6)));
  return some;
}

inline at::ScalarType coordinates_of(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

inline int64_t sampling_ratio(Bytes& bytes) {
  return size(bytes, -1, 5);
}

inline Arguments multiscale_roi_align(Bytes& bytes) {
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

inline Arguments multiscale_roi_align_backward(Bytes& bytes) {
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

inline Arguments nms_padded(Bytes& bytes) {
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

inline Arguments paste_masks(Bytes& bytes) {
  const at::ScalarType dtype = real_dtype(bytes);
  const int64_t count = size(bytes, 0, 4), side = size(bytes, 1, 30);
  return {floats(bytes, {count, 1, side, side}, dtype), floats(bytes, {count, 4}, dtype),
          size(bytes, 0, 200), size(bytes, 0, 200)};
}

inline Arguments paste_masks_packed(Bytes& bytes) {
  const int64_t count = size(bytes, 0, 4), side = size(bytes, 1, 30);
  return {floats(bytes, {count, 1, side, side}), floats(bytes, {count, 4}), size(bytes, 0, 200),
          size(bytes, 0, 200), any_float(bytes)};
}

inline Arguments top_k_of_levels(Bytes& bytes) {
  c10::List<int64_t> sizes;
  int64_t sum = 0;
  for (int64_t l = size(bytes, 1, 5); l > 0; --l) {
    sizes.push_back(size(bytes, 0, 100));
    sum += sizes[sizes.size() - 1];
  }
  return {floats(bytes, {size(bytes, 0, 3), sum}, real_dtype(bytes)), sizes, size(bytes, 0, 120)};
}

inline const std::map<std::string, std::function<Arguments(Bytes&)>> kFitting = {
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

}  // namespace fuzz
