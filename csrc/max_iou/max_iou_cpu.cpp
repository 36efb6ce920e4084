// Best matches and low-quality matches on the CPU, without storing the IoU matrix [G, A].
//
// Boxes are taken in blocks of kBlock; a thread computes the IoUs of a block with one ground-truth
// box after another, and keeps for each box its best match, and for each ground truth its highest
// IoU in the block. The highest IoU of a ground truth over all blocks is known only at the end. A
// box is a low-quality match if it reaches that value, so the IoUs of the few (block, ground truth)
// pairs that reach it are then computed again.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/box_iou.h"
#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "arguments.h"

namespace maskrcnn {
namespace {

constexpr int64_t kBlock = 256;  // boxes: their 5 arrays and 3 of IoUs stay in L1
constexpr int64_t kVector = 32;  // running maxima side by side, in vector registers
// Fewer pairs than that are not worth a thread (estimate).
constexpr int64_t kPairsPerThread = 1 << 16;

// Boxes as a structure of arrays; the last one is repeated to the end of the block.
template <typename T>
struct Block {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];

  Block(const T* boxes, int64_t count) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const T* box = boxes + 4 * std::min(i, count - 1);
      x1[i] = box[0], y1[i] = box[1], x2[i] = box[2], y2[i] = box[3];
      area[i] = box_area(box[0], box[1], box[2], box[3]);
    }
  }

  // iou[i] of every box i with `gt`.
  ALWAYS_INLINE void iou_with(const T* gt, T* iou) const {
    const T gx1 = gt[0], gy1 = gt[1], gx2 = gt[2], gy2 = gt[3];
    const T gt_area = box_area(gx1, gy1, gx2, gy2);
    for (int64_t i = 0; i < kBlock; ++i) {
      iou[i] = box_iou(gx1, gy1, gx2, gy2, gt_area, x1[i], y1[i], x2[i], y2[i], area[i]);
    }
  }
};

template <typename T>
ALWAYS_INLINE T largest(const T* iou) {
  T of_lane[kVector];
  std::copy_n(iou, kVector, of_lane);
  for (int64_t i = kVector; i < kBlock; i += kVector) {
    for (int64_t k = 0; k < kVector; ++k) {
      of_lane[k] = larger(iou[i + k], of_lane[k]);
    }
  }
  T best = of_lane[0];
  for (const T lane : of_lane) best = larger(lane, best);
  return best;
}

// For `count` boxes the highest IoU and its ground truth; for each ground truth its highest IoU.
template <typename T>
ALWAYS_INLINE void match_block(const T* gt_boxes,
                               int64_t num_gt,
                               const T* boxes,
                               int64_t count,
                               T* best_iou,
                               int64_t* best_gt,
                               T* best_of_gt) {
  const Block<T> block(boxes, count);
  T iou[kBlock], best[kBlock];
  int32_t gt[kBlock] = {};
  block.iou_with(gt_boxes, best);
  best_of_gt[0] = largest(best);
  for (int64_t g = 1; g < num_gt; ++g) {
    block.iou_with(gt_boxes + 4 * g, iou);
    best_of_gt[g] = largest(iou);
    for (int64_t i = 0; i < kBlock; ++i) {
      const bool better = exceeds(iou[i], best[i]);
      best[i] = better ? iou[i] : best[i];
      gt[i] = better ? int32_t(g) : gt[i];
    }
  }
  std::copy_n(best, count, best_iou);
  std::copy_n(gt, count, best_gt);
}

// Sets is_match[i] for the boxes that reach the highest IoU of some ground-truth box.
template <typename T>
ALWAYS_INLINE void mark_low_quality_matches(const T* gt_boxes,
                                            int64_t num_gt,
                                            const T* boxes,
                                            int64_t count,
                                            const T* best_of_gt_here,
                                            const T* best_of_gt,
                                            bool* is_match) {
  const Block<T> block(boxes, count);
  T iou[kBlock];
  int32_t reached[kBlock] = {};
  for (int64_t g = 0; g < num_gt; ++g) {
    if (best_of_gt_here[g] != best_of_gt[g]) continue;
    block.iou_with(gt_boxes + 4 * g, iou);
    for (int64_t i = 0; i < kBlock; ++i) reached[i] |= iou[i] == best_of_gt[g];
  }
  std::copy_n(reached, count, is_match);
}

template <typename T>
void match(const T* gt_boxes,
           int64_t num_gt,
           const T* boxes,
           int64_t count,
           bool find_low_quality_matches,
           T* best_iou,
           int64_t* best_gt,
           bool* is_match) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const auto for_each_block = [&](const auto& work) {
    const int64_t grain = kPairsPerThread / (num_gt * kBlock) + 1;
    torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
      with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
        for (int64_t b = begin; b < end; ++b) {
          work(b, b * kBlock, std::min(kBlock, count - b * kBlock));
        }
      });
    });
  };
  std::vector<T> best_in_block(blocks * num_gt);
  for_each_block([&](int64_t b, int64_t first, int64_t size) ALWAYS_INLINE_LAMBDA {
    match_block(gt_boxes, num_gt, boxes + 4 * first, size, best_iou + first, best_gt + first,
                best_in_block.data() + b * num_gt);
  });
  if (!find_low_quality_matches) {
    std::fill_n(is_match, count, false);
    return;
  }
  std::vector<T> best_of_gt(best_in_block.begin(), best_in_block.begin() + num_gt);
  for (int64_t b = 1; b < blocks; ++b) {
    for (int64_t g = 0; g < num_gt; ++g) {
      best_of_gt[g] = larger(best_in_block[b * num_gt + g], best_of_gt[g]);
    }
  }
  for_each_block([&](int64_t b, int64_t first, int64_t size) ALWAYS_INLINE_LAMBDA {
    mark_low_quality_matches(gt_boxes, num_gt, boxes + 4 * first, size,
                             best_in_block.data() + b * num_gt, best_of_gt.data(),
                             is_match + first);
  });
}

std::tuple<Tensor, Tensor, Tensor> max_iou(Tensor gt_boxes,
                                           Tensor boxes,
                                           bool find_low_quality_matches) {
  check_max_iou_arguments(gt_boxes, boxes);
  gt_boxes = torch::stable::contiguous(gt_boxes);
  boxes = torch::stable::contiguous(boxes);
  const int64_t count = boxes.size(0);
  Tensor best_iou = torch::stable::new_empty(boxes, {count});
  Tensor best_gt = torch::stable::new_empty(boxes, {count}, ScalarType::Long);
  Tensor is_low_quality_match = torch::stable::new_empty(boxes, {count}, ScalarType::Bool);
  dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto tag) {
    using T = typename decltype(tag)::type;
    match(gt_boxes.const_data_ptr<T>(), gt_boxes.size(0), boxes.const_data_ptr<T>(), count,
          find_low_quality_matches, best_iou.mutable_data_ptr<T>(),
          best_gt.mutable_data_ptr<int64_t>(), is_low_quality_match.mutable_data_ptr<bool>());
  });
  return {best_iou, best_gt, is_low_quality_match};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("max_iou", TORCH_BOX(&maskrcnn::max_iou));
}
