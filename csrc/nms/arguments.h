// What NMS asks of its arguments, on every device.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_nms_arguments(const Tensor& boxes,
                                const Tensor& scores,
                                const Tensor& groups,
                                int64_t max_out,
                                int64_t num_groups) {
  check_dim(boxes, 3, "boxes", "[N, K, 4]");
  CHECK_ARGUMENT(boxes.size(2) == 4, "boxes must be [N, K, 4], not ", shape_of(boxes));
  for (const auto& [tensor, name] : {std::pair{&scores, "scores"}, std::pair{&groups, "groups"}}) {
    CHECK_ARGUMENT(
        tensor->dim() == 2 && tensor->size(0) == boxes.size(0) && tensor->size(1) == boxes.size(1),
        name, " must be [N, K] as boxes is ", shape_of(boxes), ", not ", shape_of(*tensor));
    check_same_device(*tensor, boxes, name, "boxes");
  }
  check_dtype(scores, boxes.scalar_type(), "scores");
  check_dtype(groups, ScalarType::Long, "groups");
  CHECK_ARGUMENT(max_out >= 0, "max_out must not be negative, it is ", max_out);
  CHECK_ARGUMENT(num_groups >= 0, "num_groups must not be negative, it is ", num_groups);
}

// The values of a contiguous CPU tensor. CUDA kernels look at theirs only in checked mode.
inline void check_groups(const Tensor& groups, int64_t num_groups) {
  const int64_t slots = groups.size(1);
  const int64_t* group = groups.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < groups.numel(); ++i) {
    CHECK_ARGUMENT(group[i] >= 0 && group[i] < num_groups, "groups[", i / slots, ", ", i % slots,
                   "] is ", group[i], ", but num_groups is ", num_groups);
  }
}

}  // namespace maskrcnn
