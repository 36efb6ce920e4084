// What conv3x3 and its weight gradient ask of their arguments.
#pragma once

#include "../common/checks.h"
#include "matrix_product.h"

namespace maskrcnn {

// Returns m of F(m x m, 3 x 3).
inline int64_t check_conv3x3(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  check_dim(input, 4, "input", "[N, F, H, W]");
  check_dtype(input, ScalarType::Float, "input");
  CHECK_ARGUMENT(weight.dim() == 4 && (weight.size(0) == 16 || weight.size(0) == 36) &&
                     weight.size(3) == kColumns,
                 "weight must be transformed, [16 or 36, out_channels / 32, in_channels, 32], not ",
                 shape_of(weight));
  check_dtype(weight, ScalarType::Float, "weight");
  CHECK_ARGUMENT(input.size(1) == weight.size(2), "input has ", input.size(1),
                 " channels, but weight has in_channels ", weight.size(2));
  CHECK_ARGUMENT(input.size(1) > 0 && input.size(1) % kLanes == 0,
                 "in_channels must be a multiple of ", kLanes, ", not ", input.size(1));
  const int64_t out_channels = weight.size(1) * kColumns;
  CHECK_ARGUMENT(out_channels > 0, "out_channels must be positive, weight is ", shape_of(weight));
  CHECK_ARGUMENT(bias.dim() == 1 && bias.size(0) == out_channels, "bias must be [", out_channels,
                 "], not ", shape_of(bias));
  check_dtype(bias, ScalarType::Float, "bias");
  check_same_device(weight, input, "weight", "input");
  check_same_device(bias, input, "bias", "input");
  return weight.size(0) == 16 ? 2 : 4;
}

inline void check_conv3x3_weight_gradient(const Tensor& input, const Tensor& grad) {
  check_dim(input, 4, "input", "[N, F, H, W]");
  check_dtype(input, ScalarType::Float, "input");
  check_dim(grad, 4, "grad", "[N, O, H, W]");
  check_dtype(grad, ScalarType::Float, "grad");
  CHECK_ARGUMENT(grad.size(0) == input.size(0) && grad.size(2) == input.size(2) &&
                     grad.size(3) == input.size(3),
                 "grad must have the images and the size of input, ", shape_of(input), ", not ",
                 shape_of(grad));
  CHECK_ARGUMENT(input.size(1) > 0 && input.size(1) % kLanes == 0,
                 "in_channels must be a multiple of ", kLanes, ", not ", input.size(1));
  CHECK_ARGUMENT(grad.size(1) > 0 && grad.size(1) % kColumns == 0,
                 "out_channels must be a multiple of ", kColumns, ", not ", grad.size(1));
  check_numel({32, input.size(1) + 256, grad.size(1) + 256}, "the weight's gradient");  // and sums
  check_same_device(grad, input, "grad", "input");
}

}  // namespace maskrcnn
