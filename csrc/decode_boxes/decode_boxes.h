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

// delta: of the centre; log_scale: of the side. Both are divided by their weights already.
template <typename T>
HOST_DEVICE Interval<T> decode_axis(T delta, T log_scale, Interval<T> reference, T clip, T size) {
  const T length = reference.length();
  const T center = delta * length + (reference.begin + T(0.5) * length);
  const T half = std::exp(log_scale > clip ? clip : log_scale) * length * T(0.5);
  return {clamp(center - half, T(0), size), clamp(center + half, T(0), size)};
}

template <typename T>
HOST_DEVICE Box<T> decode_box(
    const T* deltas, const T* reference, const BoxCoder<T>& coder, T height, T width) {
  const auto x = decode_axis(deltas[0] / coder.weight_x, deltas[2] / coder.weight_w,
                             Interval<T>{reference[0], reference[2]}, coder.clip, width);
  const auto y = decode_axis(deltas[1] / coder.weight_y, deltas[3] / coder.weight_h,
                             Interval<T>{reference[1], reference[3]}, coder.clip, height);
  return {x.begin, y.begin, x.end, y.end};
}

}  // namespace maskrcnn
