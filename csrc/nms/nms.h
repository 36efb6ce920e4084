// When one box suppresses another: the predicate of every NMS kernel.
#pragma once

#include <cmath>
#include <limits>

#include "../common/host_device.h"

namespace maskrcnn {

template <typename T>
HOST_DEVICE T box_area(T x1, T y1, T x2, T y2) {
  return (x2 - x1) * (y2 - y1);
}

// Intersection over union above the threshold. Operations and their order are those of
// torchvision.ops.nms. NaN, be it from a box or from a union without area, suppresses nothing.
template <typename T>
HOST_DEVICE bool suppresses(
    T ax1, T ay1, T ax2, T ay2, T a_area, T bx1, T by1, T bx2, T by2, T b_area, T threshold) {
  const T x1 = ax1 < bx1 ? bx1 : ax1;
  const T y1 = ay1 < by1 ? by1 : ay1;
  const T x2 = bx2 < ax2 ? bx2 : ax2;
  const T y2 = by2 < ay2 ? by2 : ay2;
  T width = x2 - x1;
  T height = y2 - y1;
  width = T(0) < width ? width : T(0);
  height = T(0) < height ? height : T(0);
  const T intersection = width * height;
  return intersection / (a_area + b_area - intersection) > threshold;
}

// The largest T that is not above the threshold. torchvision compares a float IoU with a double
// threshold; comparing it with this one decides the same. Kernels take it from the host.
template <typename T>
T round_down(double threshold) {
  const T rounded = T(threshold);
  return double(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                     : rounded;
}

}  // namespace maskrcnn
