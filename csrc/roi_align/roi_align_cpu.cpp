// RoIAlign on the CPU, forward. One task is one RoI: its samples are placed once (roi_align.h) and
// serve all channels. Two ways to read the map, with the same bits:
//
//   channels-last: a corner is a row of C neighbours, so the vector runs over channels
//   any other:     the vector runs over the bins of a row, one channel after the other
#include "roi_align_cpu.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "channels_last.h"
#include "roi_align.h"

namespace maskrcnn {
namespace {

template <typename S>
struct FeatureMap {
  const S* data;
  int64_t height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
};

// Adds to sums[bin][c], for a map whose channels lie side by side.
template <typename S, typename T>
ALWAYS_INLINE void sum_over_channels(
    const S* image, const AxisSamples<T>& y, const AxisSamples<T>& x, int64_t channels, T* sums) {
  for (int64_t ph = 0; ph < y.bins(); ++ph) {
    for (int64_t pw = 0; pw < x.bins(); ++pw, sums += channels) {
      for (const Sample<T>& sy : y[ph]) {
        for (const Sample<T>& sx : x[pw]) {
          const T w1 = sy.w_low * sx.w_low, w2 = sy.w_low * sx.w_high;
          const T w3 = sy.w_high * sx.w_low, w4 = sy.w_high * sx.w_high;
          const S* __restrict v1 = image + sy.low + sx.low;
          const S* __restrict v2 = image + sy.low + sx.high;
          const S* __restrict v3 = image + sy.high + sx.low;
          const S* __restrict v4 = image + sy.high + sx.high;
          T* __restrict sum = sums;
          for (int64_t c = 0; c < channels; ++c) {
            sum[c] += ((w1 * T(v1[c]) + w2 * T(v2[c])) + w3 * T(v3[c])) + w4 * T(v4[c]);
          }
        }
      }
    }
  }
}

// The samples of a row of bins, side by side: slot s holds the s-th sample of each bin. Bins with
// fewer samples have inside = false there.
template <typename T>
struct Lanes {
  static constexpr int64_t kWidth = 8;
  int64_t lanes;  // bins, rounded up to whole vectors
  int64_t slots;
  std::vector<int32_t> low, high, inside;  // [slots, lanes]
  std::vector<T> w_low, w_high;

  explicit Lanes(const AxisSamples<T>& x) {
    lanes = (x.bins() + kWidth - 1) / kWidth * kWidth;
    slots = 0;
    for (int64_t bin = 0; bin < x.bins(); ++bin) slots = std::max<int64_t>(slots, x[bin].size());
    low.resize(slots * lanes);
    high.resize(slots * lanes);
    inside.resize(slots * lanes);
    w_low.resize(slots * lanes);
    w_high.resize(slots * lanes);
    for (int64_t bin = 0; bin < x.bins(); ++bin) {
      int64_t i = bin;
      for (const Sample<T>& sample : x[bin]) {
        low[i] = int32_t(sample.low);
        high[i] = int32_t(sample.high);
        inside[i] = -1;
        w_low[i] = sample.w_low;
        w_high[i] = sample.w_high;
        i += lanes;
      }
    }
  }
};

// sums[bin][c] for one channel after the other of a map with any strides.
template <typename S, typename T>
ALWAYS_INLINE void sum_over_bins(const S* image,
                                 int64_t stride_c,
                                 const AxisSamples<T>& y,
                                 const AxisSamples<T>& x,
                                 const Lanes<T>& lanes,
                                 int64_t channels,
                                 T* sums) {
  constexpr int64_t kWidth = Lanes<T>::kWidth;
  for (int64_t c = 0; c < channels; ++c, image += stride_c) {
    for (int64_t ph = 0; ph < y.bins(); ++ph) {
      for (int64_t block = 0; block < lanes.lanes; block += kWidth) {
        T sum[kWidth] = {};
        for (const Sample<T>& sy : y[ph]) {
          const S* low_row = image + sy.low;
          const S* high_row = image + sy.high;
          for (int64_t i = block; i < lanes.slots * lanes.lanes; i += lanes.lanes) {
            for (int64_t l = 0; l < kWidth; ++l) {
              const T w1 = sy.w_low * lanes.w_low[i + l], w2 = sy.w_low * lanes.w_high[i + l];
              const T w3 = sy.w_high * lanes.w_low[i + l], w4 = sy.w_high * lanes.w_high[i + l];
              const int32_t low = lanes.low[i + l], high = lanes.high[i + l];
              const T value =
                  ((w1 * T(low_row[low]) + w2 * T(low_row[high])) + w3 * T(high_row[low])) +
                  w4 * T(high_row[high]);
              sum[l] += lanes.inside[i + l] ? value : T(0);
            }
          }
        }
        const int64_t count = std::min(kWidth, x.bins() - block);
        for (int64_t l = 0; l < count; ++l)
          sums[(ph * x.bins() + block + l) * channels + c] = sum[l];
      }
    }
  }
}

// sums [bins, C] / count -> output of one RoI, [bins, C] (channels-last) or [C, bins].
template <typename S, typename T>
ALWAYS_INLINE void store(
    T* sums, T count, int64_t bins, int64_t channels, bool channels_last, S* output) {
  const int64_t whole = int64_t(count);
  if ((whole & (whole - 1)) == 0) {  // a power of two: the product has the quotient's bits
    const T factor = T(1) / count;
    for (int64_t i = 0; i < bins * channels; ++i) sums[i] *= factor;
  } else {
    for (int64_t i = 0; i < bins * channels; ++i) sums[i] /= count;
  }
  if (channels_last) {
    for (int64_t i = 0; i < bins * channels; ++i) output[i] = S(sums[i]);
  } else {
    transpose(sums, bins, channels, channels, output, bins);
  }
}

template <typename S>
Tensor forward(std::vector<Tensor> features,
               const Tensor& rois,
               const Tensor& levels,
               const std::vector<double>& scales,
               int64_t pooled_height,
               int64_t pooled_width,
               int64_t sampling_ratio,
               bool aligned,
               bool channels_last) {
  using T = accumulate_t<S>;
  const int64_t num_images = features[0].size(0), channels = features[0].size(1);
  const int64_t num_rois = rois.size(0), bins = pooled_height * pooled_width;
  const RoiView<T> view(rois, levels, features.size(), num_images);

  // Reordering the maps reads each pixel once; it pays if the RoIs read more than that.
  int64_t pixels = 0;
  for (const Tensor& feature : features) pixels += num_images * feature.size(2) * feature.size(3);
  const bool reorder = channels > 1 && num_rois * bins * 4 > pixels;

  std::vector<FeatureMap<S>> maps;
  for (Tensor& feature : features) {
    if (feature.stride(1) != 1 && reorder) {
      feature =
          change_format<S, S>(torch::stable::contiguous(feature), feature.scalar_type(), true);
    } else if (feature.size(3) * feature.stride(3) > INT32_MAX) {  // more than Lanes can index
      feature = torch::stable::contiguous(feature);
    }
    maps.push_back({feature.const_data_ptr<S>(), feature.size(2), feature.size(3),
                    feature.stride(0), feature.stride(1), feature.stride(2), feature.stride(3)});
  }
  Tensor output = empty_cpu({num_rois, channels, pooled_height, pooled_width},
                            features[0].scalar_type(), channels_last);
  S* out = output.mutable_data_ptr<S>();

  const std::vector<int64_t> order = view.by_place(scales);
  constexpr int64_t kNeighbours = 16;
  const auto pool = [&](int64_t i) {
    const int64_t r = order[i];
    const FeatureMap<S>& map = maps[view.level(r)];
    const T* box = view.box(r);
    const T scale = T(scales[view.level(r)]);
    const S* image = map.data + view.image(r) * map.stride_n;
    const auto y_axis = sample_axis(box[1], box[3], scale, pooled_height, sampling_ratio, aligned);
    const auto x_axis = sample_axis(box[0], box[2], scale, pooled_width, sampling_ratio, aligned);
    const AxisSamples<T> y(y_axis, pooled_height, map.height, map.stride_h);
    const AxisSamples<T> x(x_axis, pooled_width, map.width, map.stride_w);
    const T count = sample_count(y_axis, x_axis);
    std::vector<T> sums(bins * channels);
    S* roi_out = out + r * channels * bins;
    if (map.stride_c == 1 && channels > 1) {
      with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
        sum_over_channels(image, y, x, channels, sums.data());
        store(sums.data(), count, bins, channels, channels_last, roi_out);
      });
    } else {
      const Lanes<T> lanes(x);
      with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
        sum_over_bins(image, map.stride_c, y, x, lanes, channels, sums.data());
        store(sums.data(), count, bins, channels, channels_last, roi_out);
      });
    }
  };
  parallel_tasks(num_rois, pool, kNeighbours);
  return output;
}

Tensor multiscale_roi_align(std::vector<Tensor> features,
                            Tensor rois,
                            Tensor levels,
                            std::vector<double> scales,
                            int64_t pooled_height,
                            int64_t pooled_width,
                            int64_t sampling_ratio,
                            bool aligned,
                            bool channels_last) {
  check_features(features, scales, rois);
  const ScalarType dtype = features[0].scalar_type();
  check_rois(rois, levels, accumulate_dtype(dtype));
  check_pooled_size(pooled_height, pooled_width);
  return dispatch_floating(dtype, "features", [&](auto tag) {
    using S = typename decltype(tag)::type;
    return forward<S>(std::move(features), rois, levels, scales, pooled_height, pooled_width,
                      sampling_ratio, aligned, channels_last);
  });
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("multiscale_roi_align", TORCH_BOX(&maskrcnn::multiscale_roi_align));
}
