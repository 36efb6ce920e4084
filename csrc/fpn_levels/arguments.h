// Argument checks of fpn_levels.
#pragma once

#include "../common/checks.h"

namespace maskrcnn {

inline void check_fpn_levels_arguments(const Tensor& boxes,
                                       int64_t finest,
                                       int64_t coarsest,
                                       double canonical_scale) {
  CHECK_ARGUMENT(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must be [R, 4], not ",
                 shape_of(boxes));
  CHECK_ARGUMENT(INT32_MIN <= finest && finest <= coarsest && coarsest <= INT32_MAX,
                 "coarsest must be at least finest, they are ", coarsest, " and ", finest);
  CHECK_ARGUMENT(canonical_scale > 0, "canonical_scale must be positive, it is ", canonical_scale);
}

}  // namespace maskrcnn
