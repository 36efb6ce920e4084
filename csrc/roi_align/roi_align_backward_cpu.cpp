// RoIAlign on the CPU, backward: the gradient of a bin is added to the pixels that its samples
// read. Both axes of the sampling grid are independent, so this is a product with two sparse
// matrices, first along x, then along y:
//
//   grad_map[y, x] += sum over ph, pw of Wy[ph, y] * Wx[pw, x] * grad[ph, pw] / count
//
// A task owns some channels of one image on one level, and adds its RoIs in a fixed order: there
// are no atomics, and the bits do not depend on the number of threads.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "channels_last.h"
#include "roi_align_cpu.h"

namespace maskrcnn {
namespace {

constexpr int64_t kChannelBlock = 64;
constexpr int64_t kWorthThreads = 1 << 15;  // elements of the gradient; fewer take one thread

// Wy or Wx, sparse: the weights of each bin on the few pixels that its samples read.
template <typename T>
struct AxisWeights {
  struct Weight {
    int64_t entry;  // of pixels
    T value;
  };
  std::vector<int64_t> pixels;  // that any bin reads, times the stride
  std::vector<std::vector<Weight>> of_bin;

  explicit AxisWeights(const AxisSamples<T>& samples) : of_bin(samples.bins()) {
    for (int64_t bin = 0; bin < samples.bins(); ++bin) {
      for (const Sample<T>& sample : samples[bin]) {
        add(of_bin[bin], entry_of(sample.low), sample.w_low);
        add(of_bin[bin], entry_of(sample.high), sample.w_high);
      }
    }
  }

 private:
  // Samples advance along the axis, so a pixel seen before is one of the last two.
  int64_t entry_of(int64_t pixel) {
    const int64_t count = pixels.size();
    for (int64_t entry = count - 1; entry >= 0 && entry >= count - 2; --entry) {
      if (pixels[entry] == pixel) return entry;
    }
    pixels.push_back(pixel);
    return count;
  }
  static void add(std::vector<Weight>& weights, int64_t entry, T value) {
    const int64_t count = weights.size();
    for (int64_t i = count - 1; i >= 0 && i >= count - 2; --i) {
      if (weights[i].entry == entry) {
        weights[i].value += value;
        return;
      }
    }
    weights.push_back({entry, value});
  }
};

template <typename T>
ALWAYS_INLINE void add_scaled(T factor, const T* __restrict from, int64_t count, T* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// Adds grad [bins, channels] of one RoI to grad_map, of which the task owns `channels`.
template <typename T>
ALWAYS_INLINE void spread(const T* grad,
                          const AxisWeights<T>& y,
                          const AxisWeights<T>& x,
                          int64_t channels,
                          T* row,
                          T* grad_map) {
  const int64_t pooled_width = x.of_bin.size();
  for (const auto& y_weights : y.of_bin) {
    std::fill(row, row + x.pixels.size() * channels, T(0));
    for (int64_t pw = 0; pw < pooled_width; ++pw, grad += channels) {
      for (const auto& wx : x.of_bin[pw]) {
        add_scaled(wx.value, grad, channels, row + wx.entry * channels);
      }
    }
    for (const auto& wy : y_weights) {
      for (size_t i = 0; i < x.pixels.size(); ++i) {
        T* pixel = grad_map + y.pixels[wy.entry] + x.pixels[i];
        add_scaled(wy.value, row + i * channels, channels, pixel);
      }
    }
  }
}

template <typename S>
std::vector<Tensor> backward(const Tensor& grad,
                             const RoiView<accumulate_t<S>>& rois,
                             const std::vector<double>& scales,
                             const std::vector<int64_t>& heights,
                             const std::vector<int64_t>& widths,
                             int64_t batch_size,
                             int sampling_ratio,
                             bool aligned,
                             bool channels_last) {
  using T = accumulate_t<S>;
  const ScalarType dtype = grad.scalar_type(), sum_dtype = accumulate_dtype(dtype);
  const int64_t channels = grad.size(1), pooled_height = grad.size(2), pooled_width = grad.size(3);
  const int64_t bins = pooled_height * pooled_width;
  const int64_t num_levels = heights.size();

  std::vector<Tensor> grads;
  std::vector<T*> maps;
  for (int64_t l = 0; l < num_levels; ++l) {
    grads.push_back(lazy_zeros_cpu({batch_size, channels, heights[l], widths[l]}, sum_dtype,
                                   sizeof(T),
                                   /*channels_last=*/true));
    maps.push_back(grads[l].template mutable_data_ptr<T>());
    prefer_huge_pages(maps[l], grads[l].numel() * sizeof(T));
  }

  if (grad.numel() > 0) {
    std::vector<std::vector<int64_t>> rois_of(batch_size * num_levels);  // [image, level]
    for (const int64_t r : rois.by_position(scales)) {
      rois_of[rois.image(r) * num_levels + rois.level(r)].push_back(r);
    }
    const bool grad_channels_last = grad.stride(1) == 1;
    const S* grad_data = grad.const_data_ptr<S>();
    const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
    const int64_t tasks = blocks * batch_size * num_levels;
    const auto run = [&](int64_t task) {
      const auto& own_rois = rois_of[task / blocks];
      const int64_t l = task / blocks % num_levels, image = task / blocks / num_levels;
      const int64_t first = task % blocks * kChannelBlock;
      const int64_t own = std::min(kChannelBlock, channels - first);
      T* map = maps[l] + image * heights[l] * widths[l] * channels + first;
      const T scale = T(scales[l]);
      std::vector<T> bin_grads(bins * own), row;
      for (const int64_t r : own_rois) {
        const T* box = rois.box(r);
        const auto y_axis =
            sample_axis(box[1], box[3], scale, pooled_height, sampling_ratio, aligned);
        const auto x_axis =
            sample_axis(box[0], box[2], scale, pooled_width, sampling_ratio, aligned);
        const AxisWeights<T> y(
            AxisSamples<T>(y_axis, pooled_height, heights[l], widths[l] * channels));
        const AxisWeights<T> x(AxisSamples<T>(x_axis, pooled_width, widths[l], channels));
        const T factor = T(1) / sample_count(y_axis, x_axis);
        row.resize(x.pixels.size() * own);
        const S* roi_grad = grad_data + r * bins * channels;
        with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
          if (grad_channels_last) {
            for (int64_t bin = 0; bin < bins; ++bin) {
              const S* from = roi_grad + bin * channels + first;
              for (int64_t c = 0; c < own; ++c) bin_grads[bin * own + c] = T(from[c]);
            }
          } else {
            transpose(roi_grad + first * bins, own, bins, bins, bin_grads.data(), own);
          }
          for (T& value : bin_grads) value *= factor;
          spread(bin_grads.data(), y, x, own, row.data(), map);
        });
      }
    };
    parallel_tasks(tasks, run, grad.numel() < kWorthThreads ? tasks : 1);
  }

  for (Tensor& map : grads) {
    if (!channels_last) {
      map = change_format<T, S>(map, dtype, false);
    } else if (sum_dtype != dtype) {
      map = torch::stable::to(map, dtype);
    }
  }
  return grads;
}

std::vector<Tensor> multiscale_roi_align_backward(Tensor grad,
                                                  Tensor rois,
                                                  Tensor levels,
                                                  std::vector<double> scales,
                                                  std::vector<int64_t> heights,
                                                  std::vector<int64_t> widths,
                                                  int64_t batch_size,
                                                  int64_t sampling_ratio,
                                                  bool aligned,
                                                  bool channels_last,
                                                  bool /*deterministic: it always is*/) {
  check_backward_arguments(grad, rois, levels, scales, heights, widths, batch_size);
  const int ratio = checked_sampling_ratio(sampling_ratio);
  const bool is_channels_last = grad.stride(1) == 1 && grad.size(1) > 1;
  grad = torch::stable::contiguous(grad, memory_format(is_channels_last));
  return dispatch_floating(grad.scalar_type(), "grad", [&](auto tag) {
    using S = typename decltype(tag)::type;
    const RoiView<accumulate_t<S>> view(rois, levels, scales.size(), batch_size);
    return backward<S>(grad, view, scales, heights, widths, batch_size, ratio, aligned,
                       channels_last);
  });
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("multiscale_roi_align_backward",
               TORCH_BOX(&maskrcnn::multiscale_roi_align_backward));
}
