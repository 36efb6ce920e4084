// A mask interpolated at one row of the image, on CUDA.
#pragma once

#include "paste_masks.h"

namespace maskrcnn {

// The two rows of a mask between which a row of the image lies. Those of the border, which are
// zero, are null.
template <typename S, typename T>
struct MaskRows {
  const S *low, *high;
  T w_low, w_high;

  // mask: [side, side].
  __device__ MaskRows(const S* mask, int side, const PasteSample<T>& y)
      : low(y.low >= 0 && y.low < side ? mask + int64_t(y.low) * side : nullptr),
        high(y.low + 1 < side ? mask + int64_t(y.low + 1) * side : nullptr),
        w_low(y.w_low),
        w_high(y.w_high) {}

  // One pixel. The order of operations is that of the CPU kernels: rows first, then columns.
  __device__ T at(int side, const PasteSample<T>& x) const {
    return x.w_low * column(side, x.low) + x.w_high * column(side, x.low + 1);
  }
  __device__ T column(int side, int i) const {
    if (unsigned(i) >= unsigned(side)) return T(0);
    T sum = T(0);
    if (low != nullptr) sum += w_low * T(low[i]);
    if (high != nullptr) sum += w_high * T(high[i]);
    return sum;
  }
};

}  // namespace maskrcnn
