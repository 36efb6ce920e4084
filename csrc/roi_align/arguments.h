// Argument checks of RoIAlign, forward and backward, on every device.
#pragma once

#include "../common/checks.h"
#include "../common/dispatch.h"
#include "roi_align.h"

namespace maskrcnn {

inline void check_rois(const Tensor& rois, const Tensor& levels, ScalarType coordinate_dtype) {
  check_dim(rois, 2, "rois", "[R, 5]");
  CHECK_ARGUMENT(rois.size(1) == 5, "rois must be [R, 5], not ", shape_of(rois));
  check_dtype(rois, coordinate_dtype, "rois");
  CHECK_ARGUMENT(levels.dim() == 1 && levels.size(0) == rois.size(0), "levels must be [",
                 rois.size(0), "] because rois is ", shape_of(rois), ", not ", shape_of(levels));
  check_dtype(levels, ScalarType::Long, "levels");
  check_same_device(levels, rois, "levels", "rois");
}

// Reads the values of contiguous CPU tensors. For CUDA tensors only the checked mode does this.
template <typename T>
void check_roi_indices(const Tensor& rois,
                       const Tensor& levels,
                       int64_t num_levels,
                       int64_t num_images) {
  const T* roi = rois.template const_data_ptr<T>();
  const int64_t* level = levels.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < rois.size(0); ++r) {
    CHECK_ARGUMENT(level[r] >= 0 && level[r] < num_levels, "levels[", r, "] is ", level[r],
                   ", but there are ", num_levels, " levels");
    CHECK_ARGUMENT(roi[5 * r] >= T(0) && roi[5 * r] < T(num_images), "rois[", r,
                   "] has batch index ", roi[5 * r], ", but the batch has ", num_images, " images");
  }
}

// One map, [N, F, H_l, W_l]. RoIs need at least one pixel to read from.
inline void check_map_size(size_t level, int64_t height, int64_t width, int64_t num_rois) {
  check_side(height, "the height of a feature map");
  check_side(width, "the width of a feature map");
  CHECK_ARGUMENT(num_rois == 0 || (height > 0 && width > 0), "features[", level,
                 "] has no pixels: its size is (", height, ", ", width, ")");
}

inline void check_features(const std::vector<Tensor>& features,
                           const std::vector<double>& scales,
                           const Tensor& rois) {
  CHECK_ARGUMENT(!features.empty(), "features is empty: at least one level is needed");
  CHECK_ARGUMENT(features.size() == scales.size(), "features has ", features.size(),
                 " levels, but scales has ", scales.size());
  const Tensor& first = features[0];
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& feature = features[l];
    CHECK_ARGUMENT(feature.dim() == 4, "features[", l, "] must be [N, F, H, W], not ",
                   shape_of(feature));
    CHECK_ARGUMENT(feature.size(0) == first.size(0) && feature.size(1) == first.size(1),
                   "features[", l, "] is ", shape_of(feature), ", but features[0] is ",
                   shape_of(first), ": N and F must agree");
    CHECK_ARGUMENT(feature.scalar_type() == first.scalar_type(), "features[", l, "] is ",
                   toString(feature.scalar_type()), ", but features[0] is ",
                   toString(first.scalar_type()));
    CHECK_ARGUMENT(feature.device() == rois.device(), "features[", l,
                   "] and rois must be on the same device");
    check_map_size(l, feature.size(2), feature.size(3), rois.size(0));
  }
}

// Bins are counted in 31 bits.
inline void check_pooled_size(int64_t height, int64_t width) {
  CHECK_ARGUMENT(height > 0 && width > 0, "output_size must be positive, not (", height, ", ",
                 width, ")");
  CHECK_ARGUMENT(height <= INT32_MAX / width, "output_size (", height, ", ", width,
                 ") has more than ", INT32_MAX, " bins");
}

// The sampling ratio as the kernels take it; below 1, one sample per pixel.
inline int checked_sampling_ratio(int64_t sampling_ratio) {
  CHECK_ARGUMENT(sampling_ratio <= kMaxGrid, "sampling_ratio must be at most ", kMaxGrid, ", not ",
                 sampling_ratio);
  return sampling_ratio > 0 ? int(sampling_ratio) : 0;
}

inline void check_forward_arguments(const std::vector<Tensor>& features,
                                    const Tensor& rois,
                                    const Tensor& levels,
                                    const std::vector<double>& scales,
                                    int64_t pooled_height,
                                    int64_t pooled_width) {
  CHECK_ARGUMENT(rois.dim() > 0, "rois must be [R, 5], not []");
  check_features(features, scales, rois);
  check_rois(rois, levels, accumulate_dtype(features[0].scalar_type()));
  check_pooled_size(pooled_height, pooled_width);
  check_numel({rois.size(0), features[0].size(1), pooled_height, pooled_width}, "the result");
}

inline void check_backward_arguments(const Tensor& grad,
                                     const Tensor& rois,
                                     const Tensor& levels,
                                     const std::vector<double>& scales,
                                     const std::vector<int64_t>& heights,
                                     const std::vector<int64_t>& widths,
                                     int64_t batch_size) {
  check_dim(grad, 4, "grad", "[R, F, S, S]");
  check_rois(rois, levels, accumulate_dtype(grad.scalar_type()));
  check_same_device(grad, rois, "grad", "rois");
  CHECK_ARGUMENT(grad.size(0) == rois.size(0), "grad must have one row per RoI: it is ",
                 shape_of(grad), ", but rois is ", shape_of(rois));
  check_pooled_size(grad.size(2), grad.size(3));
  CHECK_ARGUMENT(heights.size() == scales.size() && widths.size() == scales.size(),
                 "heights, widths and scales must have one entry per level, they have ",
                 heights.size(), ", ", widths.size(), " and ", scales.size());
  CHECK_ARGUMENT(batch_size >= 0, "batch_size must not be negative, it is ", batch_size);
  for (size_t l = 0; l < scales.size(); ++l) {
    check_map_size(l, heights[l], widths[l], rois.size(0));
    check_numel({batch_size, grad.size(1), heights[l], widths[l], int64_t(scales.size())},
                "the gradient of the features");
  }
}

}  // namespace maskrcnn
