// Argument checks of mask pasting, on every device.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_paste_arguments(const Tensor& masks,
                                  const Tensor& boxes,
                                  int64_t height,
                                  int64_t width) {
  CHECK_ARGUMENT(
      masks.dim() == 4 && masks.size(1) == 1 && masks.size(2) == masks.size(3) && masks.size(2) > 0,
      "masks must be [D, 1, M, M], not ", shape_of(masks));
  CHECK_ARGUMENT(boxes.dim() == 2 && boxes.size(0) == masks.size(0) && boxes.size(1) == 4,
                 "boxes must be [D, 4] because masks is ", shape_of(masks), ", not ",
                 shape_of(boxes));
  check_same_device(masks, boxes, "masks", "boxes");
  check_side(height, "the height of the image");
  check_side(width, "the width of the image");
  check_numel({masks.size(0), height, width}, "the result");
}

// Pixels outside the box are 0, and must not reach the threshold.
inline void check_threshold(double threshold) {
  CHECK_ARGUMENT(float(threshold) > 0, "threshold must be above 0, not ", threshold);
}

}  // namespace maskrcnn
