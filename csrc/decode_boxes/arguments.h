// Argument checks of decode_boxes.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_decode_boxes_arguments(const Tensor& deltas,
                                         const Tensor& references,
                                         const Tensor& image_sizes,
                                         int64_t weights) {
  check_dim(deltas, 3, "deltas", "[N, K, 4]");
  CHECK_ARGUMENT(deltas.size(2) == 4, "deltas must be [N, K, 4], not ", shape_of(deltas));
  CHECK_ARGUMENT(references.dim() == 3 && references.size(0) == deltas.size(0) &&
                     references.size(1) == deltas.size(1) && references.size(2) == 4,
                 "references must be ", shape_of(deltas), " as deltas is, not ",
                 shape_of(references));
  CHECK_ARGUMENT(
      image_sizes.dim() == 2 && image_sizes.size(0) == deltas.size(0) && image_sizes.size(1) == 2,
      "image_sizes must be [N, 2] because deltas is ", shape_of(deltas), ", not ",
      shape_of(image_sizes));
  check_dtype(references, deltas.scalar_type(), "references");
  check_dtype(image_sizes, ScalarType::Long, "image_sizes");
  check_same_device(references, deltas, "references", "deltas");
  check_same_device(image_sizes, deltas, "image_sizes", "deltas");
  CHECK_ARGUMENT(weights == 4, "weights must be 4 numbers, not ", weights);
}

}  // namespace maskrcnn
