// RoIAlign on the CPU, forward. A task is one RoI. The positions of its samples (roi_align.h) are
// computed once for all channels. There are two ways to read the map, with the same bits:
//
//   channels-last: a pixel has its F channels side by side, so a vector holds channels
//   any other:     a vector holds the bins of a row, one channel after another
#include "roi_align_cpu.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <type_traits>
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

// sum / count, by a product where it has the quotient's bits.
template <typename T>
struct Average {
  T count, factor;
  bool exact;

  explicit Average(T count) : count(count), factor(T(1) / count) {
    const int64_t whole = int64_t(count);
    exact = (whole & (whole - 1)) == 0;  // a power of two
  }
  ALWAYS_INLINE_LAMBDA T operator()(T sum) const { return exact ? sum * factor : sum / count; }
};

// 64 bytes of T, which the compiler maps to the vector registers of the instruction set.
template <typename T>
using Pack __attribute__((vector_size(64))) = T;

template <typename P, typename S>
ALWAYS_INLINE void load(const S* from, P& pack) {
  using T = accumulate_t<S>;
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(&pack, from, sizeof(P));
  } else {
    T values[sizeof(P) / sizeof(T)];
    for (size_t i = 0; i < sizeof(P) / sizeof(T); ++i) values[i] = T(from[i]);
    std::memcpy(&pack, values, sizeof(P));
  }
}

template <typename S>
ALWAYS_INLINE void prefetch(const S* from, size_t count) {
  for (size_t i = 0; i < count; i += 64 / sizeof(S)) __builtin_prefetch(from + i);
}

// One bin of kPacks * kLanes channels, summed in registers of type P (Pack<T> or T). Memory is the
// bottleneck, so the samples of the next bin, up to `x_end`, are prefetched meanwhile.
template <typename P, int kPacks, typename S, typename T, typename To>
ALWAYS_INLINE void pool_bin(const S* image,
                            const SampleRange<T>& y,
                            const SampleRange<T>& x,
                            const Sample<T>* x_end,
                            const Average<T>& average,
                            To* output) {
  constexpr int kLanes = sizeof(P) / sizeof(T);
  P sums[kPacks] = {};
  for (const Sample<T>& sy : y) {
    const S* low = image + sy.low;
    const S* high = image + sy.high;
    for (const Sample<T>& sx : x) {
      if constexpr (kPacks > 1) {
        const Sample<T>& next = (&sx)[std::min<int64_t>(x.size(), x_end - 1 - &sx)];
        for (const S* row : {low, high}) {
          prefetch(row + next.low, kPacks * kLanes);
          prefetch(row + next.high, kPacks * kLanes);
        }
      }
      const T w1 = sy.w_low * sx.w_low, w2 = sy.w_low * sx.w_high;
      const T w3 = sy.w_high * sx.w_low, w4 = sy.w_high * sx.w_high;
      for (int i = 0; i < kPacks; ++i) {
        P v1, v2, v3, v4;
        load(low + sx.low + i * kLanes, v1);
        load(low + sx.high + i * kLanes, v2);
        load(high + sx.low + i * kLanes, v3);
        load(high + sx.high + i * kLanes, v4);
        sums[i] += ((w1 * v1 + w2 * v2) + w3 * v3) + w4 * v4;
      }
    }
  }
  T values[kPacks * kLanes];
  std::memcpy(values, sums, sizeof(sums));
  for (int c = 0; c < kPacks * kLanes; ++c) output[c] = To(average(values[c]));
}

// output[bin][c], for a channels-last map.
template <typename S, typename T, typename To>
ALWAYS_INLINE void pool_channels_last(const S* image,
                                      const AxisSamples<T>& y,
                                      const AxisSamples<T>& x,
                                      int64_t channels,
                                      const Average<T>& average,
                                      To* output) {
  constexpr int64_t kLanes = sizeof(Pack<T>) / sizeof(T);
  for (int64_t ph = 0; ph < y.bins(); ++ph) {
    for (int64_t pw = 0; pw < x.bins(); ++pw, output += channels) {
      int64_t c = 0;
      for (; c + 4 * kLanes <= channels; c += 4 * kLanes) {
        pool_bin<Pack<T>, 4>(image + c, y[ph], x[pw], x.end(), average, output + c);
      }
      for (; c + kLanes <= channels; c += kLanes) {
        pool_bin<Pack<T>, 1>(image + c, y[ph], x[pw], x.end(), average, output + c);
      }
      for (; c < channels; ++c) {
        pool_bin<T, 1>(image + c, y[ph], x[pw], x.end(), average, output + c);
      }
    }
  }
}

// The samples of a row of bins, side by side: row s holds the s-th sample of each bin. Bins with
// fewer samples have inside = 0 there.
template <typename T>
struct Lanes {
  static constexpr int64_t kWidth = 8;
  int64_t bins;
  int64_t lanes;                           // bins, rounded up to whole vectors
  int64_t samples;                         // most samples of a bin
  std::vector<int32_t> low, high, inside;  // [samples, lanes]
  std::vector<T> w_low, w_high;

  explicit Lanes(const AxisSamples<T>& x) : bins(x.bins()) {
    lanes = (bins + kWidth - 1) / kWidth * kWidth;
    samples = 0;
    for (int64_t bin = 0; bin < x.bins(); ++bin)
      samples = std::max<int64_t>(samples, x[bin].size());
    low.resize(samples * lanes);
    high.resize(samples * lanes);
    inside.resize(samples * lanes);
    w_low.resize(samples * lanes);
    w_high.resize(samples * lanes);
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

// output[bin][c] with any strides, for a map with any strides, one channel after another.
template <typename S, typename T>
ALWAYS_INLINE void pool_strided(const S* image,
                                int64_t stride_c,
                                const AxisSamples<T>& y,
                                const Lanes<T>& x,
                                int64_t channels,
                                const Average<T>& average,
                                int64_t output_stride_bin,
                                int64_t output_stride_c,
                                S* output) {
  constexpr int64_t kWidth = Lanes<T>::kWidth;
  for (int64_t c = 0; c < channels; ++c, image += stride_c) {
    S* bin = output + c * output_stride_c;
    for (int64_t ph = 0; ph < y.bins(); ++ph) {
      for (int64_t block = 0; block < x.lanes; block += kWidth) {
        T sum[kWidth] = {};
        for (const Sample<T>& sy : y[ph]) {
          const S* low_row = image + sy.low;
          const S* high_row = image + sy.high;
          for (int64_t i = block; i < x.samples * x.lanes; i += x.lanes) {
            for (int64_t l = 0; l < kWidth; ++l) {
              const T w1 = sy.w_low * x.w_low[i + l], w2 = sy.w_low * x.w_high[i + l];
              const T w3 = sy.w_high * x.w_low[i + l], w4 = sy.w_high * x.w_high[i + l];
              const int32_t low = x.low[i + l], high = x.high[i + l];
              const T value =
                  ((w1 * T(low_row[low]) + w2 * T(low_row[high])) + w3 * T(high_row[low])) +
                  w4 * T(high_row[high]);
              sum[l] += x.inside[i + l] ? value : T(0);
            }
          }
        }
        const int64_t count = std::min(kWidth, x.bins - block);
        for (int64_t l = 0; l < count; ++l, bin += output_stride_bin) *bin = S(average(sum[l]));
      }
    }
  }
}

template <typename S>
Tensor forward(std::vector<Tensor> features,
               const Tensor& rois,
               const Tensor& levels,
               const std::vector<double>& scales,
               int64_t pooled_height,
               int64_t pooled_width,
               int sampling_ratio,
               bool aligned,
               bool channels_last) {
  using T = accumulate_t<S>;
  const int64_t num_images = features[0].size(0), channels = features[0].size(1);
  const int64_t num_rois = rois.size(0), bins = pooled_height * pooled_width;
  const RoiView<T> view(rois, levels, features.size(), num_images);

  // Copying the maps to channels-last reads each pixel once. That pays if the RoIs read more.
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
  if (output.numel() == 0) return output;
  S* out = output.mutable_data_ptr<S>();

  const std::vector<int64_t> order = view.by_position(scales);
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
    const Average<T> average(sample_count(y_axis, x_axis));
    S* roi_out = out + r * channels * bins;
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      if (map.stride_c != 1 || channels == 1) {
        pool_strided(image, map.stride_c, y, Lanes<T>(x), channels, average,
                     channels_last ? channels : 1, channels_last ? 1 : bins, roi_out);
      } else if (channels_last) {
        pool_channels_last(image, y, x, channels, average, roi_out);
      } else {
        std::vector<T> by_bin(bins * channels);
        pool_channels_last(image, y, x, channels, average, by_bin.data());
        transpose(by_bin.data(), bins, channels, channels, roi_out, bins);
      }
    });
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
  check_forward_arguments(features, rois, levels, scales, pooled_height, pooled_width);
  const int ratio = checked_sampling_ratio(sampling_ratio);
  return dispatch_floating(features[0].scalar_type(), "features", [&](auto tag) {
    using S = typename decltype(tag)::type;
    return forward<S>(std::move(features), rois, levels, scales, pooled_height, pooled_width, ratio,
                      aligned, channels_last);
  });
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("multiscale_roi_align", TORCH_BOX(&maskrcnn::multiscale_roi_align));
}
