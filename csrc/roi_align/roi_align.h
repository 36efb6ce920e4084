// RoIAlign (Mask R-CNN, Section 3): the positions of a RoI's samples, and how a sample is
// interpolated. The two axes are independent, so each function here is about one axis.
//
// A RoI is divided into `pooled` bins along the axis, a bin into `grid` samples. A sample at
// `position` (in pixels of the feature map) is interpolated from the pixels `low` and `high`; the
// weights of a two-dimensional sample are products of the weights of its two axes. Order of
// operations and conventions are those of torchvision.ops.roi_align, so that float32 results have
// the same bits:
//
//   value(bin) = (sum over iy, then ix, of ((w1 v1 + w2 v2) + w3 v3) + w4 v4) / count
//   w1 = y.w_low * x.w_low, w2 = y.w_low * x.w_high, w3 = y.w_high * x.w_low, ...
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace maskrcnn {

// Limits the samples per bin and axis where a RoI is infinite, and the sampling ratio.
constexpr int64_t kMaxGrid = int64_t{1} << 22;

template <typename T>
struct SampleAxis {
  T start;       // where the RoI begins, in pixels of the map
  T bin;         // length of a bin, in pixels of the map
  int64_t grid;  // samples per bin; 0 when the RoI has no extent or is NaN
};

// A RoI's axis from `low` to `high` in image pixels. `aligned` shifts by half a pixel, so that
// pixel centres match; without it the RoI is at least one feature pixel long.
template <typename T>
HOST_DEVICE SampleAxis<T> sample_axis(
    T low, T high, T scale, int pooled, int sampling_ratio, bool aligned) {
  const T offset = aligned ? T(0.5) : T(0);
  const T start = low * scale - offset;
  T length = (high * scale - offset) - start;
  if (!aligned && length < T(1)) length = T(1);
  const T bin = length / T(pooled);
  if (sampling_ratio > 0) return {start, bin, sampling_ratio};
  if (!(bin > T(0))) return {start, bin, 0};
  if (bin >= T(kMaxGrid)) return {start, bin, kMaxGrid};
  const int64_t whole = int64_t(bin);
  return {start, bin, whole + (T(whole) < bin)};  // ceil(bin): about one per pixel
}

template <typename T>
HOST_DEVICE T sample_position(const SampleAxis<T>& axis, int64_t bin_index, int64_t sample_index) {
  return axis.start + T(bin_index) * axis.bin +
         (T(sample_index) + T(0.5)) * axis.bin / T(axis.grid);
}

template <typename T>
struct Sample {
  int64_t low, high;
  T w_low, w_high;
};

// False for a sample outside [-1, size] (NaN is outside), which counts as zero. Needs size >= 1.
template <typename T>
HOST_DEVICE bool interpolate(T position, int64_t size, Sample<T>& sample) {
  if (!(position >= T(-1) && position <= T(size))) return false;
  if (position <= T(0)) position = T(0);
  sample.low = int64_t(position);
  if (sample.low >= size - 1) {
    sample.low = sample.high = size - 1;
    position = T(sample.low);
  } else {
    sample.high = sample.low + 1;
  }
  sample.w_high = position - T(sample.low);
  sample.w_low = T(1) - sample.w_high;
  return true;
}

// The samples [begin, end) of a bin whose position can lie in [low, high]; the others cannot.
// A bin of a huge RoI has millions of samples, of which at most a few per pixel matter.
template <typename T>
HOST_DEVICE void samples_between(
    const SampleAxis<T>& axis, int64_t bin_index, T low, T high, int64_t& begin, int64_t& end) {
  begin = 0;
  end = axis.grid;
  if (axis.grid <= 64) return;
  const T step = axis.bin / T(axis.grid);
  const T origin = axis.start + T(bin_index) * axis.bin;
  const T first = (low - origin) / step;
  const T last = (high - origin) / step;
  if (!(last >= T(0) && first <= T(axis.grid))) {  // outside, or NaN
    end = 0;
    return;
  }
  const int64_t margin = 2 + (axis.grid >> 16);  // covers the rounding of the estimate
  if (first > T(margin)) begin = int64_t(first) - margin;
  if (last < T(axis.grid - margin)) end = int64_t(last) + margin;
}

// The samples [begin, end) of a bin that can lie inside the map.
template <typename T>
HOST_DEVICE void samples_inside(
    const SampleAxis<T>& axis, int64_t bin_index, int64_t size, int64_t& begin, int64_t& end) {
  samples_between(axis, bin_index, T(-1), T(size), begin, end);
}

// The sum of the weights that a bin's samples give to pixel `pixel`, before they are averaged.
template <typename T>
HOST_DEVICE T
pixel_weight(const SampleAxis<T>& axis, int64_t bin_index, int64_t pixel, int64_t size) {
  const T low = T(pixel - 1);
  const T high = T(pixel == size - 1 ? size : pixel + 1);
  int64_t begin, end;
  samples_between(axis, bin_index, low, high, begin, end);
  T weight = T(0);
  for (int64_t i = begin; i < end; ++i) {
    Sample<T> sample;
    if (!interpolate(sample_position(axis, bin_index, i), size, sample)) continue;
    if (sample.low == pixel) weight += sample.w_low;
    if (sample.high == pixel) weight += sample.w_high;
  }
  return weight;
}

// Tiles of `tile` pixels of the axis that the RoI may read: [begin, end). No other tile is read;
// NaN reads none.
template <typename T>
HOST_DEVICE void tile_range(
    const SampleAxis<T>& axis, int bins, int tile, int64_t tiles, int64_t& begin, int64_t& end) {
  const T other = axis.start + T(bins) * axis.bin;
  const T low = axis.start < other ? axis.start : other;
  const T high = axis.start < other ? other : axis.start;
  const T margin = T(2) + (high - low) * T(1e-5);  // a pixel, and the rounding of positions
  const T first = (low - margin) / T(tile), last = (high + margin) / T(tile);
  begin = end = 0;
  if (!(last >= T(0) && first < T(tiles))) return;  // outside, or NaN
  if (first > T(0)) begin = int64_t(first);
  end = last < T(tiles) ? int64_t(last) + 1 : tiles;
  if (begin > tiles) begin = tiles;  // T(tiles) may be rounded up
  if (end > tiles) end = tiles;
}

// The number of samples per bin, by which its sum is divided.
template <typename T>
HOST_DEVICE T sample_count(int64_t y_grid, int64_t x_grid) {
  const int64_t count = y_grid * x_grid;
  return T(count > 1 ? count : 1);
}
template <typename T>
HOST_DEVICE T sample_count(const SampleAxis<T>& y, const SampleAxis<T>& x) {
  return sample_count<T>(y.grid, x.grid);
}

}  // namespace maskrcnn
