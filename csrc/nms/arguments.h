// Argument checks of NMS, on every device.
#pragma once

#include <algorithm>
#include <utility>

#include "../common/checks.h"

namespace maskrcnn {

inline void check_nms_arguments(const Tensor& boxes,
                                const Tensor& scores,
                                const Tensor& groups,
                                int64_t max_out,
                                int64_t num_groups,
                                int64_t offset_limit) {
  check_dim(boxes, 3, "boxes", "[N, K, 4]");
  CHECK_ARGUMENT(boxes.size(2) == 4, "boxes must be [N, K, 4], not ", shape_of(boxes));
  for (const auto& [tensor, name] : {std::pair{&scores, "scores"}, std::pair{&groups, "groups"}}) {
    CHECK_ARGUMENT(
        tensor->dim() == 2 && tensor->size(0) == boxes.size(0) && tensor->size(1) == boxes.size(1),
        name, " must be [N, K] because boxes is ", shape_of(boxes), ", not ", shape_of(*tensor));
    check_same_device(*tensor, boxes, name, "boxes");
  }
  check_dtype(scores, boxes.scalar_type(), "scores");
  check_dtype(groups, ScalarType::Long, "groups");
  CHECK_ARGUMENT(max_out >= 0, "max_out must not be negative, it is ", max_out);
  check_numel({boxes.size(0), max_out}, "indices");
  CHECK_ARGUMENT(num_groups >= 0 && num_groups <= INT32_MAX, "num_groups must be in [0, ",
                 INT32_MAX, "], it is ", num_groups);
  CHECK_ARGUMENT(offset_limit >= 0, "offset_limit must not be negative, it is ", offset_limit);
}

// Reads the values of a contiguous CPU tensor, and returns one more than the largest. For CUDA
// tensors only the checked mode does this.
inline int64_t check_groups(const Tensor& groups, int64_t num_groups) {
  const int64_t boxes = groups.size(1);
  const int64_t* group = groups.const_data_ptr<int64_t>();
  int64_t end = 0;
  for (int64_t i = 0; i < groups.numel(); ++i) {
    CHECK_ARGUMENT(group[i] >= 0 && group[i] < num_groups, "groups[", i / boxes, ", ", i % boxes,
                   "] is ", group[i], ", but num_groups is ", num_groups);
    end = std::max(end, group[i] + 1);
  }
  return end;
}

}  // namespace maskrcnn
