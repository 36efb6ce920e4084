// What both directions of RoIAlign ask of their arguments, on every device.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_rois(const Tensor& rois, const Tensor& levels, ScalarType coordinate_dtype) {
  check_dim(rois, 2, "rois", "[K, 5]");
  CHECK_ARGUMENT(rois.size(1) == 5, "rois must be [K, 5], not ", shape_of(rois));
  check_dtype(rois, coordinate_dtype, "rois");
  CHECK_ARGUMENT(levels.dim() == 1 && levels.size(0) == rois.size(0), "levels must be [",
                 rois.size(0), "] as rois has that many, not ", shape_of(levels));
  check_dtype(levels, ScalarType::Long, "levels");
}

// The values of contiguous CPU tensors. CUDA kernels look at theirs only in checked mode.
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

inline void check_features(const std::vector<Tensor>& features,
                           const std::vector<double>& scales,
                           const Tensor& rois) {
  CHECK_ARGUMENT(!features.empty(), "features is empty: at least one level is needed");
  CHECK_ARGUMENT(features.size() == scales.size(), "features has ", features.size(),
                 " levels, but scales has ", scales.size());
  const Tensor& first = features[0];
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& feature = features[l];
    CHECK_ARGUMENT(feature.dim() == 4, "features[", l, "] must be [N, C, H, W], not ",
                   shape_of(feature));
    CHECK_ARGUMENT(feature.size(0) == first.size(0) && feature.size(1) == first.size(1),
                   "features[", l, "] is ", shape_of(feature), ", but features[0] is ",
                   shape_of(first), ": N and C must agree");
    CHECK_ARGUMENT(feature.scalar_type() == first.scalar_type(), "features[", l, "] is ",
                   toString(feature.scalar_type()), ", but features[0] is ",
                   toString(first.scalar_type()));
    CHECK_ARGUMENT(feature.device() == rois.device(), "features[", l,
                   "] and rois must be on the same device");
    CHECK_ARGUMENT(rois.size(0) == 0 || (feature.size(2) > 0 && feature.size(3) > 0), "features[",
                   l, "] has no pixels: ", shape_of(feature));
  }
}

inline void check_pooled_size(int64_t height, int64_t width) {
  CHECK_ARGUMENT(height > 0 && width > 0, "output_size must be positive, not (", height, ", ",
                 width, ")");
}

}  // namespace maskrcnn
