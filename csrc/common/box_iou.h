// Overlap of two boxes, with the operations of torchvision.ops.box_iou in their order.
#pragma once

#include "host_device.h"

namespace maskrcnn {

template <typename T>
HOST_DEVICE T box_area(T x1, T y1, T x2, T y2) {
  return (x2 - x1) * (y2 - y1);
}

// Intersection over union. NaN where a box holds one or where neither has an area.
template <typename T>
HOST_DEVICE T box_iou(T ax1, T ay1, T ax2, T ay2, T a_area, T bx1, T by1, T bx2, T by2, T b_area) {
  const T x1 = ax1 < bx1 ? bx1 : ax1;
  const T y1 = ay1 < by1 ? by1 : ay1;
  const T x2 = bx2 < ax2 ? bx2 : ax2;
  const T y2 = by2 < ay2 ? by2 : ay2;
  T width = x2 - x1;
  T height = y2 - y1;
  width = T(0) < width ? width : T(0);
  height = T(0) < height ? height : T(0);
  const T intersection = width * height;
  return intersection / (a_area + b_area - intersection);
}

}  // namespace maskrcnn
