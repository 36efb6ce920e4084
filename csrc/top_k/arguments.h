// Argument checks of top_k_of_levels, on every device.
#pragma once

#include <vector>

#include "../common/checks.h"

namespace maskrcnn {

inline void check_top_k_arguments(const Tensor& values,
                                  const std::vector<int64_t>& level_sizes,
                                  int64_t k) {
  check_dim(values, 2, "values", "[N, A]");
  CHECK_ARGUMENT(k >= 0, "k must not be negative, it is ", k);
  int64_t sum = 0;
  for (const int64_t size : level_sizes) {
    CHECK_ARGUMENT(size >= 0, "level_sizes must not be negative, one is ", size);
    CHECK_ARGUMENT(!__builtin_add_overflow(sum, size, &sum),
                   "level_sizes add up to 2^63 or more, but values is ", shape_of(values));
  }
  CHECK_ARGUMENT(sum == values.size(1), "level_sizes add up to ", sum, ", but values is ",
                 shape_of(values));
}

}  // namespace maskrcnn
