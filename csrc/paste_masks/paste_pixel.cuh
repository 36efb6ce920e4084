// One pixel of a pasted mask. The order of operations is that of the CPU kernels: rows of the mask
// first, then columns.
#pragma once

#include "paste_masks.h"

namespace maskrcnn {

// mask: [side, side].
template <typename S, typename T>
__device__ T
paste_pixel(const S* mask, int64_t side, const PasteSample<T>& y, const PasteSample<T>& x) {
  const auto blend_rows = [&](int64_t column) {
    if (column < 0 || column >= side) return T(0);
    T sum = T(0);
    if (y.low >= 0 && y.low < side) sum += y.w_low * T(mask[y.low * side + column]);
    if (y.low + 1 < side) sum += y.w_high * T(mask[(y.low + 1) * side + column]);
    return sum;
  };
  return x.w_low * blend_rows(x.low) + x.w_high * blend_rows(x.low + 1);
}

}  // namespace maskrcnn
