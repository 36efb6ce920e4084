// Pasting and thresholding on the CPU, one column of the image after another. The operations and
// their order, rows of the mask first and then columns, are those of paste_masks_cpu.cpp, so that
// both agree on every pixel.
#pragma once

#include <vector>

#include "../common/cpu_isa.h"
#include "paste_masks.h"

namespace maskrcnn {

// The mask interpolated at the box's rows: [side + 3, rows], the columns of the mask with its
// border of zeros. An image column is interpolated from two neighbouring columns of it.
template <typename T>
std::vector<T> stretch_rows(const T* mask, int64_t side, const PasteAxis<T>& axis) {
  const int64_t rows = axis.end - axis.begin;
  std::vector<T> stretched((side + 3) * rows, T(0));
  for (int64_t i = 0; i < rows; ++i) {
    const PasteSample<T> sample = paste_sample(axis, axis.begin + i, side);
    const auto add = [&](int64_t mask_y, T weight) {
      if (mask_y < 0 || mask_y >= side) return;
      for (int64_t x = 0; x < side; ++x) {
        stretched[(x + 1) * rows + i] += weight * mask[mask_y * side + x];
      }
    };
    add(sample.low, sample.w_low);
    add(sample.low + 1, sample.w_high);
  }
  return stretched;
}

template <typename T>
ALWAYS_INLINE void threshold_column(const T* low,
                                    const T* high,
                                    T w_low,
                                    T w_high,
                                    int64_t rows,
                                    T threshold,
                                    uint8_t* __restrict on) {
  for (int64_t i = 0; i < rows; ++i) on[i] = w_low * low[i] + w_high * high[i] >= threshold;
}

// For each column of the image under the box: writes to `on` which of the box's rows, of which
// there must be some, reach the threshold, as 0 or 1, and calls take(column).
template <typename T, typename Take>
void threshold_columns(const T* mask,
                       int64_t side,
                       const PasteAxis<T>& x,
                       const PasteAxis<T>& y,
                       T threshold,
                       uint8_t* on,
                       const Take& take) {
  const int64_t rows = y.end - y.begin;
  const std::vector<T> stretched = stretch_rows(mask, side, y);
  for (int64_t column = x.begin; column < x.end; ++column) {
    const PasteSample<T> sample = paste_sample(x, column, side);
    const T* low = stretched.data() + (sample.low + 1) * rows;
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      threshold_column(low, low + rows, sample.w_low, sample.w_high, rows, threshold, on);
    });
    take(column);
  }
}

}  // namespace maskrcnn
