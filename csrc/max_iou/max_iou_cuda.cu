// Best matches and low-quality matches on CUDA, without storing the IoU matrix [G, A].
//
//   best_of_gt    for each ground-truth box, the highest IoU with any box (if asked for)
//   match_boxes   for each box, its best match, and whether it reaches the highest IoU of a
//                 ground-truth box, that is, whether it is a low-quality match
//
// Each computes all G * A IoUs. The second needs the highest IoUs of all boxes, so the alternative
// would be to store the IoUs: 107 MB for 100 objects and the 268,569 anchors of 800 x 1344.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/box_iou.h"
#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "../common/ordered_bits.h"
#include "arguments.h"

namespace maskrcnn {
namespace {

// Ground-truth boxes that a block of best_of_gt compares with each box that it loads: a thread
// keeps their 8 highest IoUs in registers. One at a time would read all boxes G times.
constexpr int kGtsAtOnce = 8;

// Boxes per thread of best_of_gt. Estimate: 4 x 8 IoUs of some 40 instructions are enough that
// merging 8 maxima, 5 shuffles each, costs little; and 268,569 anchors still make 263 blocks.
constexpr int kBoxesPerThread = 4;

// Ground-truth boxes in shared memory at a time, in match_boxes: 3 KiB in float64. Few images have
// more, which take several rounds.
constexpr int kGtTile = 64;

template <typename T>
struct MaxIouArguments {
  const T* gt_boxes;  // [G, 4]
  const T* boxes;     // [A, 4]
  int64_t num_gt, num_boxes;
  ordered_bits_t<T>* best_of_gt;  // [G], 0 at first; null if no low-quality matches are asked for
  T* iou;                         // [A]
  int64_t* gt;                    // [A]
  bool* is_low_quality_match;     // [A]

  HOST_DEVICE int64_t gt_blocks() const { return ceil_div<int64_t>(num_gt, kGtsAtOnce); }
  HOST_DEVICE int64_t slices() const {
    return ceil_div<int64_t>(num_boxes, int64_t(kThreads) * kBoxesPerThread);
  }
};

template <typename T>
struct BoxWithArea {
  T x1, y1, x2, y2, area;

  __device__ static BoxWithArea load(const T* box) {
    return {box[0], box[1], box[2], box[3], box_area(box[0], box[1], box[2], box[3])};
  }
  __device__ T iou_with(const BoxWithArea& box) const {
    return box_iou(x1, y1, x2, y2, area, box.x1, box.y1, box.x2, box.y2, box.area);
  }
};

// The highest IoU of each ground-truth box.
//
// Mapping: block -> kGtsAtOnce ground-truth boxes and a slice of kThreads * kBoxesPerThread boxes;
// thread -> every kThreads-th box of the slice. The lanes of a warp merge their maxima by shuffles,
// and lane 0 merges the result into best_of_gt with an atomic maximum, for which IoUs are turned
// into integers in the same order. A maximum does not depend on the order of atomics.
// Shared memory: the ground-truth boxes, [kGtsAtOnce], read by all threads at the same time. Behind
// the last ground-truth box it is repeated, which does not change its maximum.
template <typename T>
__global__ void __launch_bounds__(kThreads) best_of_gt(const MaxIouArguments<T> a) {
  __shared__ BoxWithArea<T> gts[kGtsAtOnce];
  for (int64_t item = blockIdx.x; item < a.gt_blocks() * a.slices(); item += gridDim.x) {
    const int64_t first_gt = item / a.slices() * kGtsAtOnce;
    const int64_t first = item % a.slices() * kThreads * kBoxesPerThread;
    const auto gt_index = [&](int64_t g) {
      return first_gt + g < a.num_gt ? first_gt + g : a.num_gt - 1;
    };
    if (threadIdx.x < kGtsAtOnce) {
      gts[threadIdx.x] = BoxWithArea<T>::load(a.gt_boxes + 4 * gt_index(threadIdx.x));
    }
    __syncthreads();
    ordered_bits_t<T> best[kGtsAtOnce] = {};
    for (int k = 0; k < kBoxesPerThread; ++k) {
      const int64_t i = first + int64_t(k) * kThreads + threadIdx.x;
      if (i >= a.num_boxes) break;
      const auto box = BoxWithArea<T>::load(a.boxes + 4 * i);
#pragma unroll
      for (int g = 0; g < kGtsAtOnce; ++g) {
        const auto bits = ordered_bits(gts[g].iou_with(box));
        if (bits > best[g]) best[g] = bits;
      }
    }
#pragma unroll
    for (int g = 0; g < kGtsAtOnce; ++g) {
      for (int distance = 16; distance > 0; distance /= 2) {
        const auto other = __shfl_xor_sync(~0u, best[g], distance);
        if (other > best[g]) best[g] = other;
      }
      if (threadIdx.x % 32 == 0) atomicMax(&a.best_of_gt[gt_index(g)], best[g]);
    }
    __syncthreads();  // the next item overwrites shared memory
  }
}

// The best match of each box: the highest IoU, ties broken by the lower index of the ground truth.
//
// Mapping: block -> kThreads boxes; thread -> one box, which it keeps in registers while it goes
// through the ground-truth boxes in ascending order.
// Shared memory: up to kGtTile ground-truth boxes and their highest IoUs, read by all threads at
// the same time.
template <typename T>
__global__ void __launch_bounds__(kThreads) match_boxes(const MaxIouArguments<T> a) {
  __shared__ BoxWithArea<T> gts[kGtTile];
  __shared__ T highest[kGtTile];
  for (int64_t item = blockIdx.x; item < ceil_div<int64_t>(a.num_boxes, kThreads);
       item += gridDim.x) {
    const int64_t i = item * kThreads + threadIdx.x;
    const auto box = BoxWithArea<T>::load(a.boxes + 4 * (i < a.num_boxes ? i : a.num_boxes - 1));
    T best = T(0);
    int64_t best_gt = -1;
    bool reaches = false;
    for (int64_t first = 0; first < a.num_gt; first += kGtTile) {
      const int size = a.num_gt - first < kGtTile ? int(a.num_gt - first) : kGtTile;
      for (int g = threadIdx.x; g < size; g += kThreads) {
        gts[g] = BoxWithArea<T>::load(a.gt_boxes + 4 * (first + g));
        if (a.best_of_gt != nullptr) highest[g] = value_of<T>(a.best_of_gt[first + g]);
      }
      __syncthreads();
      for (int g = 0; g < size; ++g) {
        const T iou = gts[g].iou_with(box);
        if (best_gt < 0 || exceeds(iou, best)) {
          best = iou;
          best_gt = first + g;
        }
        if (a.best_of_gt != nullptr) reaches |= iou == highest[g];
      }
      __syncthreads();  // the next round overwrites shared memory
    }
    if (i >= a.num_boxes) continue;
    a.iou[i] = best;
    a.gt[i] = best_gt;
    a.is_low_quality_match[i] = reaches;
  }
}

std::tuple<Tensor, Tensor, Tensor> max_iou(Tensor gt_boxes,
                                           Tensor boxes,
                                           bool find_low_quality_matches) {
  check_max_iou_arguments(gt_boxes, boxes);
  gt_boxes = torch::stable::contiguous(gt_boxes);
  boxes = torch::stable::contiguous(boxes);
  const CudaLaunch launch(boxes);
  const int64_t num_boxes = boxes.size(0);
  Tensor iou = torch::stable::new_empty(boxes, {num_boxes});
  Tensor gt = torch::stable::new_empty(boxes, {num_boxes}, ScalarType::Long);
  Tensor is_match = torch::stable::new_empty(boxes, {num_boxes}, ScalarType::Bool);
  dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto tag) {
    using T = typename decltype(tag)::type;
    MaxIouArguments<T> arguments{
        .gt_boxes = gt_boxes.const_data_ptr<T>(),
        .boxes = boxes.const_data_ptr<T>(),
        .num_gt = gt_boxes.size(0),
        .num_boxes = num_boxes,
        .best_of_gt = nullptr,
        .iou = iou.mutable_data_ptr<T>(),
        .gt = gt.mutable_data_ptr<int64_t>(),
        .is_low_quality_match = is_match.mutable_data_ptr<bool>(),
    };
    Tensor best;  // outlives the launches
    if (find_low_quality_matches) {
      best = torch::stable::new_zeros(boxes, {gt_boxes.size(0)});  // 0 in bits too
      arguments.best_of_gt = reinterpret_cast<ordered_bits_t<T>*>(best.mutable_data_ptr<T>());
      launch("best_of_gt", best_of_gt<T>, arguments.gt_blocks() * arguments.slices(), arguments);
    }
    launch("match_boxes", match_boxes<T>, ceil_div<int64_t>(num_boxes, kThreads), arguments);
  });
  return {iou, gt, is_match};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("max_iou", TORCH_BOX(&maskrcnn::max_iou));
}
