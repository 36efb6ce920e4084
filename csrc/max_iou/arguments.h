// Argument checks of max_iou, on every device.
#pragma once

#include <utility>

#include "../common/checks.h"

namespace maskrcnn {

inline void check_max_iou_arguments(const Tensor& gt_boxes, const Tensor& boxes) {
  for (const auto& [tensor, name] : {std::pair{&gt_boxes, "gt_boxes"}, {&boxes, "boxes"}}) {
    CHECK_ARGUMENT(tensor->dim() == 2 && tensor->size(0) > 0 && tensor->size(1) == 4, name,
                   " must be [number of boxes, 4] and not empty, it is ", shape_of(*tensor));
  }
  check_dtype(gt_boxes, boxes.scalar_type(), "gt_boxes");
  check_same_device(gt_boxes, boxes, "gt_boxes", "boxes");
  CHECK_ARGUMENT(gt_boxes.size(0) <= INT32_MAX, "gt_boxes has ", gt_boxes.size(0),
                 " boxes, at most ", INT32_MAX, " are possible");
}

}  // namespace maskrcnn
