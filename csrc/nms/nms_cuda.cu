// NMS on CUDA: the sequence of kernels. N images have K candidates each, padding included; how many
// are valid is counted on the device and never read by the host, so nothing synchronises.
//
//   nms_order.cuh    nms_count      count the valid candidates, find their largest coordinate
//                    nms_list       list them, bucket of groups after bucket
//                    nms_rank       count the boxes of its bucket that come before each
//                    nms_sort       move boxes to their positions: group after group, best first
//   nms_select.cuh   nms_compare    bit masks: which later boxes of its group a box would suppress
//                    nms_sweep      one block per group: keep the best, drop what it suppresses
//                    nms_suppress   drop boxes of later chunks that kept ones suppress
//                    nms_collect    kept boxes of all groups of an image by score
//
// Masks of all pairs would take K * K bits. So a group is cut into chunks: masks hold pairs within
// a chunk, and the kept boxes of a chunk are compared with the boxes of later chunks directly.
// Where at most kFewKept boxes can be kept, the sweep compares them itself, in one launch. Else
// sweep and suppress alternate, chunk by chunk.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "../common/workspace.cuh"
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
  NmsArguments<T> a = {};
  a.boxes = boxes.const_data_ptr<T>();
  a.scores = scores.const_data_ptr<T>();
  a.groups = groups.const_data_ptr<int64_t>();
  a.images = images;
  a.candidates = candidates;
  a.max_out = max_out;
  a.offset_limit = offset_limit;
  a.words = words_of_chunk(candidates);
  a.threshold = round_down<T>(iou_threshold);
  a.indices = indices.mutable_data_ptr<int64_t>();
  a.num_kept = count.mutable_data_ptr<int64_t>();
  int64_t zeros = 0;  // bytes that count from zero, at the front
  const auto place_arrays = [&](void* address) {
    Workspace workspace(address);
    a.bucket_counts = workspace.array<int>(images * kBuckets);
    a.bucket_used = workspace.array<int>(images * kBuckets);
    a.largest = workspace.array<ordered_bits_t<T>>(images);
    a.num_groups = workspace.array<int>(images);
    a.total_kept = workspace.array<int>(images);
    a.orders = workspace.array<Order>(images * candidates);
    zeros = workspace.bytes();
    a.num_valid = workspace.array<int>(images);
    a.bucket_begins = workspace.array<int>(images * (kBuckets + 1));
    a.valid = workspace.array<int>(images * candidates);
    a.sorted_boxes = workspace.array<T>(images * candidates * 4);
    a.sorted = workspace.array<SortedBox>(images * candidates);
    a.masks = workspace.array<Word>(images * candidates * a.words);
    a.kept = workspace.array<int>(images * candidates);
    a.kept_index = workspace.array<int>(images * candidates);
    a.kept_score = workspace.array<T>(images * candidates);
    a.kept_before = workspace.array<int>(images * candidates);
    a.suppressed = workspace.array<int>(images * candidates);
    a.kept_groups = workspace.array<KeptGroup>(images * candidates);
    return workspace.bytes();
  };
  Tensor memory = torch::stable::new_empty(groups, {place_arrays(nullptr)}, ScalarType::Byte);
  launch.clear(memory.mutable_data_ptr<uint8_t>(), zeros);
  place_arrays(memory.mutable_data_ptr<uint8_t>());

  const int64_t blocks = images * ceil_div<int64_t>(candidates, kThreads);
  launch("nms_count", nms_count<T>, blocks, a);
  launch("nms_list", nms_list<T>, blocks, a);
  launch("nms_rank", nms_rank<T>, kResidentBlocks, a);
  launch("nms_sort", nms_sort<T>, std::min(blocks, kResidentBlocks), a);
  launch("nms_compare", nms_compare<T>, kResidentBlocks, a);
  const int64_t step = max_out <= kFewKept ? candidates : int64_t(a.words) * kWordBits;
  for (int64_t begin = 0; begin < candidates; begin += step) {
    const int64_t end = std::min(begin + step, candidates);
    launch("nms_sweep", nms_sweep<T>, kResidentBlocks, a, int(begin), int(end));
    if (end == candidates) break;
    launch("nms_suppress", nms_suppress<T>, kResidentBlocks, a, int(begin), int(end));
  }
  launch("nms_collect", nms_collect<T>, kResidentBlocks, a);
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
  if (boxes.numel() == 0 || max_out == 0) {
    return {torch::stable::new_zeros(groups, {boxes.size(0), max_out}),
            torch::stable::new_zeros(groups, {boxes.size(0)})};
  }
  Tensor indices = torch::stable::new_empty(groups, {boxes.size(0), max_out});
  Tensor count = torch::stable::new_empty(groups, {boxes.size(0)});
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
