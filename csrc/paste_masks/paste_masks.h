// Pasting a mask of side M into its box: which pixels it covers, and how a pixel is interpolated.
// The two axes are independent, so each function here is about one axis.
//
// Conventions are those of torchvision's paste_masks_in_image: the mask gets a border of one zero
// pixel, the box grows by (M + 2) / M about its centre, is truncated to whole pixels, both ends
// included, and the mask is resized to it bilinearly without aligned corners.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace maskrcnn {

template <typename T>
struct PasteAxis {
  int64_t begin, end;  // pixels of the image that the box covers, half-open
  int64_t origin;      // first pixel of the enlarged box, may lie outside the image
  T scale;             // mask pixels per image pixel
};

// The axis of a box from `low` to `high` in an image of `size` pixels. NaN, inf and coordinates of
// 2^61 and more cover nothing. T is the type of the mask's arithmetic, B the box's.
template <typename T, typename B>
HOST_DEVICE PasteAxis<T> paste_axis(B low, B high, int64_t mask_side, int64_t size) {
  const B grow = B(double(mask_side + 2) / double(mask_side));
  const B half = (high - low) * B(0.5) * grow;
  const B centre = (high + low) * B(0.5);
  const B first = centre - half;
  const B last = centre + half;
  const B limit = B(int64_t{1} << 61);
  if (!(first > -limit && first < limit && last > -limit && last < limit)) return {0, 0, 0, T(0)};
  const int64_t origin = int64_t(first);
  const int64_t last_pixel = int64_t(last);
  const int64_t length = last_pixel - origin + 1 > 1 ? last_pixel - origin + 1 : 1;
  const int64_t end = last_pixel + 1 < size ? last_pixel + 1 : size;
  return {origin > 0 ? origin : 0, end, origin, T(mask_side + 2) / T(length)};
}

// Image pixel `pixel`, which the box covers, is interpolated from the mask pixels `low` and `low +
// 1`, counted without the border: from -1 to M, where those outside [0, M) are zero.
template <typename T>
struct PasteSample {
  int low;
  T w_low, w_high;
};

template <typename T>
HOST_DEVICE PasteSample<T> paste_sample(const PasteAxis<T>& axis,
                                        int64_t pixel,
                                        int64_t mask_side) {
  const int last = int(mask_side) + 1;  // of the mask with its border
  T position = axis.scale * (T(pixel - axis.origin) + T(0.5)) - T(0.5);
  if (position < T(0)) position = T(0);
  int low = int(position);
  if (low > last) low = last;
  T w_high = position - T(low);
  if (w_high > T(1)) w_high = T(1);
  return {low - 1, T(1) - w_high, w_high};
}

}  // namespace maskrcnn
