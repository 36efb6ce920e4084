// Argument checks of decode_boxes.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_decode_boxes_arguments(const Tensor& deltas,
                                         const Tensor& delta_indices,
                                         const Tensor& references,
                                         const Tensor& reference_indices,
                                         const Tensor& image_sizes,
                                         int64_t weights) {
  check_dim(deltas, 3, "deltas", "[N, A, 4]");
  const int64_t images = deltas.size(0);
  CHECK_ARGUMENT(deltas.size(2) == 4, "deltas must be [N, A, 4], not ", shape_of(deltas));
  CHECK_ARGUMENT(references.dim() == 3 &&
                     (references.size(0) == images || references.size(0) == 1) &&
                     references.size(2) == 4,
                 "references must be [N, P, 4] or [1, P, 4] because deltas is ", shape_of(deltas),
                 ", not ", shape_of(references));
  CHECK_ARGUMENT(delta_indices.dim() == 2 && delta_indices.size(0) == images,
                 "delta_indices must be [N, K] because deltas is ", shape_of(deltas), ", not ",
                 shape_of(delta_indices));
  CHECK_ARGUMENT(reference_indices.dim() == 2 && reference_indices.size(0) == images &&
                     reference_indices.size(1) == delta_indices.size(1),
                 "reference_indices must be ", shape_of(delta_indices),
                 " as delta_indices is, not ", shape_of(reference_indices));
  check_numel({images, delta_indices.size(1), 4}, "boxes");
  CHECK_ARGUMENT(
      image_sizes.dim() == 2 && image_sizes.size(0) == images && image_sizes.size(1) == 2,
      "image_sizes must be [N, 2] because deltas is ", shape_of(deltas), ", not ",
      shape_of(image_sizes));
  check_dtype(references, deltas.scalar_type(), "references");
  check_dtype(delta_indices, ScalarType::Long, "delta_indices");
  check_dtype(reference_indices, ScalarType::Long, "reference_indices");
  check_dtype(image_sizes, ScalarType::Long, "image_sizes");
  check_same_device(references, deltas, "references", "deltas");
  check_same_device(delta_indices, deltas, "delta_indices", "deltas");
  check_same_device(reference_indices, deltas, "reference_indices", "deltas");
  check_same_device(image_sizes, deltas, "image_sizes", "deltas");
  CHECK_ARGUMENT(weights == 4, "weights must be 4 numbers, not ", weights);
}

// Reads the values of a contiguous CPU tensor [N, K]. For CUDA tensors only the checked mode does
// this.
inline void check_row_indices(const Tensor& indices, int64_t rows, const char* name) {
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i) {
    CHECK_ARGUMENT(index[i] >= 0 && index[i] < rows, name, "[", i / indices.size(1), ", ",
                   i % indices.size(1), "] is ", index[i], ", but there are ", rows, " rows");
  }
}

}  // namespace maskrcnn
