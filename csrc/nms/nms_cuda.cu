// NMS on CUDA: the sequence of kernels. N images have K candidates each, padding included; how many
// are valid is counted on the device and never read by the host, so nothing synchronises.
//
//   nms_order.cuh    nms_compact    list the valid candidates, find their largest coordinate
//                    nms_rank       count the boxes before each, in the image and in its group
//                    nms_sort       move boxes to their positions: group after group, best first
//   nms_select.cuh   nms_compare    bit masks: which later boxes of its group a box would suppress
//                    nms_sweep      one block per group: keep the best, drop what it suppresses
//                    nms_suppress   drop boxes of later chunks that kept ones suppress
//                    nms_collect    kept boxes of an image by score
//
// Masks of all pairs would take K * K bits. So a group is cut into chunks: masks hold pairs within
// a chunk, and the kept boxes of a chunk are compared with the boxes of later chunks directly.
// Where at most kFewKept boxes can be kept, the sweep compares them itself, in one launch. Else
// sweep and suppress alternate, chunk by chunk.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "arguments.h"
#include "nms_order.cuh"
#include "nms_select.cuh"

namespace maskrcnn {
namespace {

template <typename T>
void nms(const Tensor& boxes,
         const Tensor& scores,
         const Tensor& groups,
         double iou_threshold,
         int64_t max_out,
         int64_t offset_limit,
         Tensor& indices,
         Tensor& count) {
  const int64_t images = boxes.size(0), candidates = boxes.size(1);
  const CudaLaunch launch(boxes);
  const auto ints = [&](std::vector<int64_t> sizes) {
    return torch::stable::new_empty(groups, sizes, ScalarType::Int);
  };
  const int words = int(
      std::min<int64_t>(ceil_div<int64_t>(candidates, kWordBits),
                        candidates <= kMaxWords * kWordBits ? kMaxWords : kManyCandidatesWords));
  Tensor num_valid = torch::stable::new_zeros(groups, {images}, ScalarType::Int);
  Tensor largest = torch::stable::new_zeros(boxes, {images});  // 0 in bits too
  Tensor orders = torch::stable::new_zeros(groups, {images, candidates, 4}, ScalarType::Int);
  Tensor valid = ints({images, candidates}), sorted = ints({images, candidates, 4});
  Tensor kept = ints({images, candidates}), kept_by_rank = ints({images, candidates});
  Tensor kept_before = ints({images, candidates}), suppressed = ints({images, candidates});
  Tensor sorted_boxes = torch::stable::empty_like(boxes);
  Tensor masks = torch::stable::new_empty(groups, {images, candidates, words});
  static_assert(sizeof(Order) == 4 * sizeof(int) && sizeof(SortedBox) == 4 * sizeof(int));
  const NmsArguments<T> arguments{
      boxes.const_data_ptr<T>(),
      scores.const_data_ptr<T>(),
      groups.const_data_ptr<int64_t>(),
      images,
      candidates,
      max_out,
      offset_limit,
      words,
      round_down<T>(iou_threshold),
      num_valid.mutable_data_ptr<int>(),
      reinterpret_cast<ordered_bits_t<T>*>(largest.mutable_data_ptr<T>()),
      valid.mutable_data_ptr<int>(),
      reinterpret_cast<Order*>(orders.mutable_data_ptr<int>()),
      sorted_boxes.mutable_data_ptr<T>(),
      reinterpret_cast<SortedBox*>(sorted.mutable_data_ptr<int>()),
      reinterpret_cast<Word*>(masks.mutable_data_ptr<int64_t>()),
      kept.mutable_data_ptr<int>(),
      kept_before.mutable_data_ptr<int>(),
      suppressed.mutable_data_ptr<int>(),
      kept_by_rank.mutable_data_ptr<int>(),
      indices.mutable_data_ptr<int64_t>(),
      count.mutable_data_ptr<int64_t>(),
  };
  const int64_t blocks = images * ceil_div<int64_t>(candidates, kThreads);
  launch("nms_compact", nms_compact<T>, blocks, arguments);
  launch("nms_rank", nms_rank<T>, kResidentBlocks, arguments);
  launch("nms_sort", nms_sort<T>, std::min(blocks, kResidentBlocks), arguments);
  launch("nms_compare", nms_compare<T>, kResidentBlocks, arguments);
  const int64_t step = max_out <= kFewKept ? candidates : int64_t(words) * kWordBits;
  for (int64_t begin = 0; begin < candidates; begin += step) {
    const int64_t end = std::min(begin + step, candidates);
    launch("nms_sweep", nms_sweep<T>, kResidentBlocks, arguments, int(begin), int(end));
    if (end == candidates) break;
    launch("nms_suppress", nms_suppress<T>, kResidentBlocks, arguments, int(begin), int(end));
  }
  launch("nms_collect", nms_collect<T>, images, arguments);
}

std::tuple<Tensor, Tensor> nms_padded(Tensor boxes,
                                      Tensor scores,
                                      Tensor groups,
                                      double iou_threshold,
                                      int64_t max_out,
                                      int64_t num_groups,
                                      int64_t offset_limit) {
  check_nms_arguments(boxes, scores, groups, max_out, num_groups, offset_limit);
  CHECK_ARGUMENT(boxes.size(1) <= kMaxBoxes, "boxes has ", boxes.size(1),
                 " boxes per image, CUDA takes up to ", kMaxBoxes);
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  groups = torch::stable::contiguous(groups);
  if (checked_mode()) {
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    check_groups(torch::stable::to(groups, cpu), num_groups);
  }
  Tensor indices = torch::stable::new_zeros(groups, {boxes.size(0), max_out});
  Tensor count = torch::stable::new_zeros(groups, {boxes.size(0)});
  if (boxes.numel() == 0 || max_out == 0) return {indices, count};
  dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto tag) {
    using T = typename decltype(tag)::type;
    nms<T>(boxes, scores, groups, iou_threshold, max_out, offset_limit, indices, count);
  });
  return {indices, count};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("nms_padded", TORCH_BOX(&maskrcnn::nms_padded));
}
