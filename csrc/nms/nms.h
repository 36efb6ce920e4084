// When one box suppresses another: the predicate of every NMS kernel.
#pragma once

#include <cmath>
#include <limits>

#include "../common/box_iou.h"

namespace maskrcnn {

// IoU above the threshold, as in torchvision.ops.nms. NaN suppresses nothing.
template <typename T>
HOST_DEVICE bool suppresses(
    T ax1, T ay1, T ax2, T ay2, T a_area, T bx1, T by1, T bx2, T by2, T b_area, T threshold) {
  return box_iou(ax1, ay1, ax2, ay2, a_area, bx1, by1, bx2, by2, b_area) > threshold;
}

// How far boxes of a group are shifted, in images with few boxes (offset_boxes_by_group in
// maskrcnn_scratch/ops/group_offset.py).
// largest: the largest coordinate of the image's candidates; NaN if one is NaN.
template <typename T>
HOST_DEVICE T group_offset(int64_t group, T largest) {
  return T(group) * (largest + T(1));
}

// The largest T that is not above the threshold. torchvision compares a float IoU with a double
// threshold; a comparison with this value has the same result. It is computed on the host.
template <typename T>
T round_down(double threshold) {
  const T rounded = T(threshold);
  return double(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                     : rounded;
}

}  // namespace maskrcnn
