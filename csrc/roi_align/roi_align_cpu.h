// What the CPU kernels of both directions share: checked RoIs, and lists of samples.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "roi_align.h"

namespace maskrcnn {

// RoIs whose level and image are in range.
template <typename T>
class RoiView {
 public:
  RoiView(const Tensor& rois, const Tensor& levels, int64_t num_levels, int64_t num_images)
      : rois_(torch::stable::contiguous(rois)), levels_(torch::stable::contiguous(levels)) {
    data_ = rois_.template const_data_ptr<T>();
    level_ = levels_.template const_data_ptr<int64_t>();
    check_roi_indices<T>(rois_, levels_, num_levels, num_images);
  }

  int64_t size() const { return rois_.size(0); }
  int64_t level(int64_t r) const { return level_[r]; }
  int64_t image(int64_t r) const { return int64_t(data_[5 * r]); }
  const T* box(int64_t r) const { return data_ + 5 * r + 1; }  // x1, y1, x2, y2

  // RoIs by image, level and position of the centre (bands of 16 pixels, left to right in each).
  // RoIs next to each other in this order read the same pixels, while these are in the cache.
  std::vector<int64_t> by_position(const std::vector<double>& scales) const {
    constexpr T kBand = 16;
    std::vector<std::tuple<int64_t, int64_t, T, T, int64_t>> keys(size());
    for (int64_t r = 0; r < size(); ++r) {
      const T scale = T(scales[level(r)]) / 2;
      const T x = (box(r)[0] + box(r)[2]) * scale, y = (box(r)[1] + box(r)[3]) * scale;
      const bool finite = std::isfinite(x) && std::isfinite(y);  // NaN has no order
      keys[r] = {image(r), level(r), finite ? std::floor(y / kBand) : T(0), finite ? x : T(0), r};
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int64_t> order(size());
    for (int64_t i = 0; i < size(); ++i) order[i] = std::get<4>(keys[i]);
    return order;
  }

 private:
  Tensor rois_, levels_;
  const T* data_;
  const int64_t* level_;
};

template <typename T>
struct SampleRange {
  const Sample<T>*first, *last;
  const Sample<T>* begin() const { return first; }
  const Sample<T>* end() const { return last; }
  int64_t size() const { return last - first; }
};

// The samples of an axis that lie inside the map, bin by bin; `low` and `high` are in elements
// (pixel * stride). axis[bin] can be iterated.
template <typename T>
class AxisSamples {
 public:
  AxisSamples(const SampleAxis<T>& axis, int64_t bins, int64_t size, int64_t stride) {
    first_.reserve(bins + 1);
    samples_.reserve(bins * std::min<int64_t>(axis.grid, 64));
    for (int64_t bin = 0; bin < bins; ++bin) {
      first_.push_back(samples_.size());
      int64_t begin, end;
      samples_inside(axis, bin, size, begin, end);
      for (int64_t i = begin; i < end; ++i) {
        Sample<T> sample;
        if (!interpolate(sample_position(axis, bin, i), size, sample)) continue;
        sample.low *= stride;
        sample.high *= stride;
        samples_.push_back(sample);
      }
    }
    first_.push_back(samples_.size());
  }

  int64_t bins() const { return int64_t(first_.size()) - 1; }
  const Sample<T>* end() const { return samples_.data() + samples_.size(); }
  SampleRange<T> operator[](int64_t bin) const {
    return {samples_.data() + first_[bin], samples_.data() + first_[bin + 1]};
  }

 private:
  std::vector<Sample<T>> samples_;
  std::vector<int64_t> first_;
};

}  // namespace maskrcnn
