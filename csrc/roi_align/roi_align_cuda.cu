// RoIAlign on CUDA, forward: all levels and images in one launch, bit-equal to the CPU kernel.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "roi_align_forward.cuh"
#include "roi_align_forward_vectors.cuh"

namespace maskrcnn {
namespace {

// The channels of every map lie side by side ...
bool is_channels_last(const std::vector<Tensor>& features) {
  for (const Tensor& feature : features) {
    if (feature.stride(1) != 1) return false;
  }
  return features[0].size(1) > 1;
}

// ... and can be read V at a time, with offsets within an image's map that fit in an int.
template <typename S>
bool takes_vectors(const std::vector<Tensor>& features, int64_t v) {
  for (const Tensor& feature : features) {
    const int64_t last = (feature.size(2) - 1) * feature.stride(2) +
                         (feature.size(3) - 1) * feature.stride(3) + feature.size(1) - 1;
    if (last > INT32_MAX) return false;
    if (!is_aligned(feature.const_data_ptr<S>(), v * sizeof(S))) return false;
    for (const int64_t number :
         {feature.size(1), feature.stride(0), feature.stride(2), feature.stride(3)}) {
      if (number % v != 0) return false;
    }
  }
  return is_channels_last(features);
}

template <typename S>
using ForwardKernel = void (*)(ForwardArguments<S>);

// The kernel for vectors of V channels. Not for float64, in which it would spill registers.
template <typename S, int V>
ForwardKernel<S> kernel_of_vectors(const ForwardArguments<S>& a) {
  const int longer_side = std::max(a.pooled_height, a.pooled_width);
  if (a.sampling_ratio == 2 && longer_side <= kTableSize / 2) {
    return a.channels_last_output ? roi_align_forward_vectors<S, V, 2, true>
                                  : roi_align_forward_vectors<S, V, 2, false>;
  }
  return a.channels_last_output ? roi_align_forward_vectors<S, V, 0, true>
                                : roi_align_forward_vectors<S, V, 0, false>;
}

template <typename S>
Tensor forward(const std::vector<Tensor>& features,
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
  const CudaLaunch launch(rois);
  Tensor output = torch::stable::empty({rois.size(0), channels, pooled_height, pooled_width},
                                       features[0].scalar_type(), std::nullopt,
                                       features[0].device(), std::nullopt,
                                       channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                     : torch::headeronly::MemoryFormat::Contiguous);
  ForwardArguments<S> arguments{
      .rois = CudaRois<T>(rois, levels, features.size(), num_images),
      .output = output.mutable_data_ptr<S>(),
      .channels = channels,
      .pooled_height = int(pooled_height),
      .pooled_width = int(pooled_width),
      .sampling_ratio = sampling_ratio,
      .aligned = aligned,
      .channels_last_input = is_channels_last(features),
      .channels_last_output = channels_last,
  };
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& f = features[l];
    arguments.maps[l] = {f.const_data_ptr<S>(), f.size(2),   f.size(3),   f.stride(0),
                         f.stride(1),           f.stride(2), f.stride(3), T(scales[l])};
  }
  if (num_images == 0) return torch::stable::zero_(output);  // no pixel that could be read
  if constexpr (sizeof(S) <= sizeof(float)) {
    constexpr int kVector = kVectorBytes / sizeof(S);
    if (takes_vectors<S>(features, kVector)) {
      launch("roi_align_forward_vectors", kernel_of_vectors<S, kVector>(arguments),
             arguments.rois.count * arguments.bin_blocks(), arguments);
      return output;
    }
  }
  launch("roi_align_forward", roi_align_forward<S>,
         arguments.rois.count * arguments.channel_blocks() * arguments.bin_blocks(), arguments);
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
  check_level_count(features.size());
  const int ratio = checked_sampling_ratio(sampling_ratio);
  rois = torch::stable::contiguous(rois);
  levels = torch::stable::contiguous(levels);
  return dispatch_floating(features[0].scalar_type(), "features", [&](auto tag) {
    using S = typename decltype(tag)::type;
    return forward<S>(features, rois, levels, scales, pooled_height, pooled_width, ratio, aligned,
                      channels_last);
  });
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("multiscale_roi_align", TORCH_BOX(&maskrcnn::multiscale_roi_align));
}
