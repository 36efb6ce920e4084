// The pyramid level of each RoI (FPN, Eq. 1) in one launch: in PyTorch it takes 13. The formula is
// that of maskrcnn_scratch/ops/reference/fpn_levels.py, with the operations in the same order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "../common/box_iou.h"
#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "arguments.h"

namespace maskrcnn {
namespace {

template <typename T>
struct LevelArguments {
  const T* boxes;      // [R, 4], whose rows begin `stride` elements apart
  int64_t count;       // R
  int64_t stride;      // 5 where the boxes are columns of RoIs
  T finest, coarsest;  // levels
  T canonical_scale, canonical_level, epsilon;
  int64_t* levels;  // [R], 0 for the finest
};

// The level of each box.
//
// Mapping: thread -> one box; block -> kThreads of them. No shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) level_of_each(const LevelArguments<T> a) {
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < a.count;
       first += int64_t(gridDim.x) * kThreads) {
    const int64_t i = first + threadIdx.x;
    if (i >= a.count) return;
    const T* box = a.boxes + i * a.stride;
    const T side = std::sqrt(box_area(box[0], box[1], box[2], box[3]));
    const T level = std::floor(std::log2(side / a.canonical_scale) + a.canonical_level + a.epsilon);
    // Written so that NaN, of a negative area, is the finest level.
    const T clamped = !(level > a.finest) ? a.finest : level < a.coarsest ? level : a.coarsest;
    a.levels[i] = int64_t(clamped - a.finest);
  }
}

Tensor fpn_levels(Tensor boxes,
                  int64_t finest,
                  int64_t coarsest,
                  double canonical_scale,
                  double canonical_level,
                  double epsilon) {
  check_fpn_levels_arguments(boxes, finest, coarsest, canonical_scale);
  if (boxes.stride(1) != 1) boxes = torch::stable::contiguous(boxes);
  const CudaLaunch launch(boxes);
  const int64_t count = boxes.size(0);
  Tensor levels = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const LevelArguments<T> arguments{
        .boxes = boxes.const_data_ptr<T>(),
        .count = count,
        .stride = boxes.stride(0),
        .finest = T(finest),
        .coarsest = T(coarsest),
        .canonical_scale = T(canonical_scale),
        .canonical_level = T(canonical_level),
        .epsilon = T(epsilon),
        .levels = levels.mutable_data_ptr<int64_t>(),
    };
    launch("fpn_levels", level_of_each<T>, ceil_div<int64_t>(count, kThreads), arguments);
  });
  return levels;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("fpn_levels", TORCH_BOX(&maskrcnn::fpn_levels));
}
