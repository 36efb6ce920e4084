// A box from its deltas: BoxCoder.decode and clip_boxes_to_image of maskrcnn_scratch/ops/boxes.py,
// with the operations in the same order.
#pragma once

#include <cmath>

#include "../common/host_device.h"

namespace maskrcnn {

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// The weights of dx, dy, dw and dh, and the upper limit of dw and dh.
template <typename T>
struct BoxCoder {
  T weight_x, weight_y, weight_w, weight_h;
  T clip;
};

// NaN stays NaN, as in torch.clamp.
template <typename T>
HOST_DEVICE T clamp(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

// The corners along one axis.
template <typename T>
struct Interval {
  T begin, end;

  HOST_DEVICE T length() const { return end - begin; }
};

// The logarithm of the ratio of two sides.
template <typename T>
HOST_DEVICE T log_scale(T delta, T weight, T clip) {
  const T scale = delta / weight;
  return scale > clip ? clip : scale;
}

// delta: of the centre, divided by its weight already; scale: of the side.
template <typename T>
HOST_DEVICE Interval<T> decode_axis(T delta, T scale, Interval<T> reference, T size) {
  const T length = reference.length();
  const T center = delta * length + (reference.begin + T(0.5) * length);
  const T half = scale * length * T(0.5);
  return {clamp(center - half, T(0), size), clamp(center + half, T(0), size)};
}

// scale_w, scale_h: exponentials of log_scale.
template <typename T>
HOST_DEVICE Box<T> decode_box(const T* deltas,
                              T scale_w,
                              T scale_h,
                              const T* reference,
                              const BoxCoder<T>& coder,
                              T height,
                              T width) {
  const auto x = decode_axis(deltas[0] / coder.weight_x, scale_w,
                             Interval<T>{reference[0], reference[2]}, width);
  const auto y = decode_axis(deltas[1] / coder.weight_y, scale_h,
                             Interval<T>{reference[1], reference[3]}, height);
  return {x.begin, y.begin, x.end, y.end};
}

// Whether both sides are at least so long; not where one is NaN.
template <typename T>
HOST_DEVICE bool has_min_size(const Box<T>& box, T min_size) {
  return (box.x2 - box.x1 >= min_size) & (box.y2 - box.y1 >= min_size);
}

}  // namespace maskrcnn
