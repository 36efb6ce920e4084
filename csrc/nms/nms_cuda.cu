// NMS on CUDA, without the host knowing how many slots hold a box: N images, K slots each, of which
// V hold a box (often few of many). All kernels run on however many the device counts.
//
//   compact   list the slots that hold a box, in any order
//   rank      for each box count those before it: by score (its rank), and by group and score (its
//             position). Counting all pairs beats a sort for a few thousand boxes, needs no stable
//             order of the list, and costs no more than the IoUs that follow
//   sort      move boxes to their positions: groups lie side by side, best first
//   compare   bit masks: which later boxes of its group each box would suppress
//   sweep     a block a group: keep the best, drop what it suppresses, repeat
//   suppress  drop what boxes kept in a chunk suppress in later ones
//   collect   a block an image: what was kept, by rank
//
// The masks of a group are cut into chunks, so that they take K * 1 KiB at the most, not K * K
// bits; boxes of a later chunk are compared with the kept ones of earlier chunks. Where few may be
// kept, the sweep itself does so, else all blocks do it between the sweeps of two chunks.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../common/block_count.cuh"
#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "arguments.h"
#include "nms.h"

namespace maskrcnn {
namespace {

using Word = unsigned long long;  // a bit a box
constexpr int kWordBits = 64;
constexpr int kMaxWords = 128;  // of a chunk: 8192 boxes
constexpr int kFewKept = 1024;  // boxes of an image
constexpr int kMaxBoxes = 1 << 30;

// Boxes that stand before a box, and in its group.
struct Counts {
  int rank;    // better ones of the image
  int begin;   // boxes of lower groups: where the group begins
  int offset;  // better ones of the group: begin + offset is the position
  int size;    // boxes of the group
};

struct Place {
  int slot, rank, begin, size;
};

// T: float or double. Arrays are [N, K] unless marked.
template <typename T>
struct NmsArguments {
  const T* boxes;  // [N, K, 4]
  const T* scores;
  const int64_t* groups;
  int64_t images, slots, max_out;
  int words;  // of a chunk
  T threshold;

  int* num_boxes;     // V, [N]
  int* list;          // by list entry: slot
  Counts* counts;     // by list entry
  T* sorted_boxes;    // by position, [N, K, 4]
  Place* places;      // by position
  Word* masks;        // by position, [N, K, words]
  int* kept;          // by order in the group, from its begin on: place in the group
  int* kept_before;   // by position of a chunk's first box: kept boxes of its group before it
  int* suppressed;    // by position: whether a box kept in an earlier chunk suppresses it
  int* kept_slots;    // by rank: slot, or -1
  int64_t* indices;   // [N, max_out], zeros
  int64_t* num_kept;  // [N]

  __device__ int chunk() const { return words * kWordBits; }
};

// Calls work(image, item) for the share of this block in the items of all images.
template <typename T, typename Items, typename Work>
__device__ void share_items(const NmsArguments<T>& a, const Items& items, const Work& work) {
  int64_t item = blockIdx.x;
  for (int64_t image = 0; image < a.images; ++image) {
    const int64_t count = items(int64_t(a.num_boxes[image]));
    for (; item < count; item += gridDim.x) work(image, item);
    item -= count;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) nms_compact(const NmsArguments<T> a) {
  const int64_t blocks = ceil_div<int64_t>(a.slots, kThreads);
  for (int64_t item = blockIdx.x; item < a.images * blocks; item += gridDim.x) {
    const int64_t image = item / blocks, slot = item % blocks * kThreads + threadIdx.x;
    const bool holds_box =
        slot < a.slots && a.scores[image * a.slots + slot] > -std::numeric_limits<T>::infinity();
    const unsigned ballot = __ballot_sync(~0u, holds_box);
    const int lane = threadIdx.x % 32;
    int first = 0;
    if (lane == 0 && ballot != 0) first = atomicAdd(&a.num_boxes[image], __popc(ballot));
    first = __shfl_sync(~0u, first, 0);
    if (holds_box) {
      const int entry = first + __popc(ballot & ((1u << lane) - 1));
      a.list[image * a.slots + entry] = int(slot);
    }
  }
}

// A block compares kThreads boxes with kThreads others.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_rank(const NmsArguments<T> a) {
  __shared__ T scores[kThreads];
  __shared__ int64_t groups[kThreads];
  __shared__ int slots[kThreads];

  const auto tiles = [](int64_t boxes) {
    const int64_t side = ceil_div<int64_t>(boxes, kThreads);
    return side * side;
  };
  share_items(a, tiles, [&](int64_t image, int64_t item) {
    const int64_t boxes = a.num_boxes[image], side = ceil_div<int64_t>(boxes, kThreads);
    const int64_t entry = item / side * kThreads + threadIdx.x;
    const int64_t first_other = item % side * kThreads;
    const int others = int(boxes - first_other < kThreads ? boxes - first_other : kThreads);
    const int* list = a.list + image * a.slots;
    const T* image_scores = a.scores + image * a.slots;
    const int64_t* image_groups = a.groups + image * a.slots;
    if (int(threadIdx.x) < others) {
      const int slot = list[first_other + threadIdx.x];
      slots[threadIdx.x] = slot;
      scores[threadIdx.x] = image_scores[slot];
      groups[threadIdx.x] = image_groups[slot];
    }
    __syncthreads();
    if (entry < boxes) {
      const int slot = list[entry];
      const T score = image_scores[slot];
      const int64_t group = image_groups[slot];
      Counts sum = {0, 0, 0, 0};
      for (int i = 0; i < others; ++i) {
        const bool better = scores[i] > score || (scores[i] == score && slots[i] < slot);
        const bool same = groups[i] == group;
        sum.rank += better;
        sum.begin += groups[i] < group;
        sum.offset += better && same;
        sum.size += same;
      }
      Counts& total = a.counts[image * a.slots + entry];
      if (sum.rank) atomicAdd(&total.rank, sum.rank);
      if (sum.begin) atomicAdd(&total.begin, sum.begin);
      if (sum.offset) atomicAdd(&total.offset, sum.offset);
      if (sum.size) atomicAdd(&total.size, sum.size);
    }
    __syncthreads();
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) nms_sort(const NmsArguments<T> a) {
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads); };
  share_items(a, blocks, [&](int64_t image, int64_t item) {
    const int64_t entry = item * kThreads + threadIdx.x;
    if (entry >= a.num_boxes[image]) return;
    const int64_t first = image * a.slots;
    const int slot = a.list[first + entry];
    const Counts counts = a.counts[first + entry];
    const int64_t to = first + counts.begin + counts.offset;
    for (int i = 0; i < 4; ++i) a.sorted_boxes[4 * to + i] = a.boxes[4 * (first + slot) + i];
    a.places[to] = {slot, counts.rank, counts.begin, counts.size};
    a.kept_before[to] = a.suppressed[to] = 0;
    a.kept_slots[first + counts.rank] = -1;
  });
}

template <typename T>
__device__ bool box_suppresses(const T* better, const T* other, T threshold) {
  return suppresses(better[0], better[1], better[2], better[3],
                    box_area(better[0], better[1], better[2], better[3]), other[0], other[1],
                    other[2], other[3], box_area(other[0], other[1], other[2], other[3]),
                    threshold);
}

// Whether one of kept[first .. last) suppresses box `other` of the group; boxes: [group's size, 4].
template <typename T>
__device__ bool any_suppresses(
    const T* boxes, const int* kept, int first, int last, int other, T threshold) {
  const T* box = boxes + 4 * int64_t(other);
  for (int k = first; k < last; ++k) {
    if (box_suppresses(boxes + 4 * int64_t(kept[k]), box, threshold)) return true;
  }
  return false;
}

// A warp a box; a lane compares it with two boxes of a word.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_compare(const NmsArguments<T> a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kWarps); };
  share_items(a, blocks, [&](int64_t image, int64_t item) {
    const int64_t position = item * kWarps + warp;
    if (position >= a.num_boxes[image]) return;  // the whole warp
    const Place place = a.places[image * a.slots + position];
    const T* group = a.sorted_boxes + 4 * (image * a.slots + place.begin);
    const int own = int(position) - place.begin;
    const int chunk = own / a.chunk() * a.chunk();
    const int end = place.size < chunk + a.chunk() ? place.size : chunk + a.chunk();
    Word* mask = a.masks + (image * a.slots + position) * a.words;
    T box[4];
    for (int i = 0; i < 4; ++i) box[i] = group[4 * int64_t(own) + i];
    for (int first = own / kWordBits * kWordBits; first < end; first += kWordBits) {
      Word word = 0;
      for (int half = 0; half < 2; ++half) {
        const int other = first + half * 32 + lane;
        const bool bit = other > own && other < end &&
                         box_suppresses(box, group + 4 * int64_t(other), a.threshold);
        word |= Word(__ballot_sync(~0u, bit)) << (half * 32);
      }
      if (lane == 0) mask[(first - chunk) / kWordBits] = word;
    }
  });
}

// Boxes [begin, end) of each group, which are whole chunks. A block a group: the one that meets its
// first box.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    nms_sweep(const NmsArguments<T> a, int begin, int end) {
  __shared__ Word removed[kMaxWords];   // of the chunk
  __shared__ Word diagonal[kWordBits];  // which boxes of its own word a box suppresses
  __shared__ Word kept_word;

  const auto all = [](int64_t boxes) { return boxes; };
  share_items(a, all, [&](int64_t image, int64_t position) {
    const Place* places = a.places + image * a.slots + position;
    const int size = places->size;
    if (places->begin != position || size <= begin) return;  // the same for all threads
    const T* boxes = a.sorted_boxes + 4 * (image * a.slots + position);
    const Word* masks = a.masks + (image * a.slots + position) * a.words;
    int* kept = a.kept + image * a.slots + position;
    const int* suppressed = a.suppressed + image * a.slots + position;
    int* kept_before = a.kept_before + image * a.slots + position;
    const int num_before = kept_before[begin];
    int num_kept = num_before;
    for (int chunk = begin; chunk < end && chunk < size && num_kept < a.max_out;
         chunk += a.chunk()) {
      const int in_chunk = size - chunk < a.chunk() ? size - chunk : a.chunk();
      for (int w = threadIdx.x; w < a.words; w += kThreads) removed[w] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < in_chunk && num_kept > 0; i += kThreads) {
        if (suppressed[chunk + i] ||
            any_suppresses(boxes, kept, num_before, num_kept, chunk + i, a.threshold)) {
          atomicOr(&removed[i / kWordBits], Word(1) << (i % kWordBits));
        }
      }
      const int words = ceil_div(in_chunk, kWordBits);
      for (int w = 0; w < words && num_kept < a.max_out; ++w) {
        const int first = w * kWordBits;
        const int in_word = in_chunk - first < kWordBits ? in_chunk - first : kWordBits;
        const Word* rows = masks + int64_t(chunk + first) * a.words;
        if (int(threadIdx.x) < in_word) diagonal[threadIdx.x] = rows[threadIdx.x * a.words + w];
        __syncthreads();
        if (threadIdx.x == 0) {
          Word alive = ~removed[w] & (~Word(0) >> (kWordBits - in_word));
          Word found = 0;
          for (int n = num_kept; alive != 0 && n < a.max_out; ++n) {
            const int best = __ffsll(alive) - 1;
            found |= Word(1) << best;
            alive &= ~(diagonal[best] | Word(1) << best);
          }
          kept_word = found;
        }
        __syncthreads();
        const Word found = kept_word;
        const int i = threadIdx.x;
        if (i < in_word && found >> i & 1) {
          const Place& place = places[chunk + first + i];
          a.kept_slots[image * a.slots + place.rank] = place.slot;
          kept[num_kept + __popcll(found & ((Word(1) << i) - 1))] = chunk + first + i;
        }
        const int later = words - w - 1;
        for (int j = threadIdx.x; j < in_word * later; j += kThreads) {
          const int row = j / later, word = w + 1 + j % later;
          if (found >> row & 1) atomicOr(&removed[word], rows[int64_t(row) * a.words + word]);
        }
        num_kept += __popcll(found);
        __syncthreads();
      }
    }
    if (threadIdx.x == 0 && end < size) kept_before[end] = num_kept;
  });
}

// A thread a box of a later chunk than [begin, end).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    nms_suppress(const NmsArguments<T> a, int begin, int end) {
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads); };
  share_items(a, blocks, [&](int64_t image, int64_t item) {
    const int64_t position = item * kThreads + threadIdx.x;
    if (position >= a.num_boxes[image]) return;
    const int64_t group = image * a.slots + a.places[image * a.slots + position].begin;
    const int own = int(image * a.slots + position - group);
    if (own < end || a.suppressed[group + own]) return;
    a.suppressed[group + own] =
        any_suppresses(a.sorted_boxes + 4 * group, a.kept + group, a.kept_before[group + begin],
                       a.kept_before[group + end], own, a.threshold);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads) nms_collect(const NmsArguments<T> a) {
  __shared__ int found_by_warp[kWarps];
  for (int64_t image = blockIdx.x; image < a.images; image += gridDim.x) {
    const int* kept_slots = a.kept_slots + image * a.slots;
    int64_t count = 0;
    for (int64_t first = 0; first < a.num_boxes[image] && count < a.max_out; first += kThreads) {
      const int64_t rank = first + threadIdx.x;
      const int slot = rank < a.num_boxes[image] ? kept_slots[rank] : -1;
      int total;
      const int64_t to = count + count_before(slot >= 0, found_by_warp, total);
      if (slot >= 0 && to < a.max_out) a.indices[image * a.max_out + to] = slot;
      count += total;
    }
    if (threadIdx.x == 0) a.num_kept[image] = count < a.max_out ? count : a.max_out;
  }
}

template <typename T>
void nms(const Tensor& boxes,
         const Tensor& scores,
         const Tensor& groups,
         double iou_threshold,
         int64_t max_out,
         Tensor& indices,
         Tensor& count) {
  const int64_t images = boxes.size(0), slots = boxes.size(1);
  const CudaLaunch launch(boxes);
  const auto ints = [&](std::vector<int64_t> sizes) {
    return torch::stable::new_empty(groups, sizes, ScalarType::Int);
  };
  // Up to 8192 boxes a group's masks are one chunk; above that, memory counts.
  const int words = int(std::min<int64_t>(ceil_div<int64_t>(slots, kWordBits),
                                          slots <= kMaxWords * kWordBits ? kMaxWords : 32));
  Tensor num_boxes = torch::stable::new_zeros(groups, {images}, ScalarType::Int);
  Tensor counts = torch::stable::new_zeros(groups, {images, slots, 4}, ScalarType::Int);
  Tensor list = ints({images, slots}), places = ints({images, slots, 4});
  Tensor kept = ints({images, slots}), kept_slots = ints({images, slots});
  Tensor kept_before = ints({images, slots}), suppressed = ints({images, slots});
  Tensor sorted_boxes = torch::stable::empty_like(boxes);
  Tensor masks = torch::stable::new_empty(groups, {images, slots, words});
  static_assert(sizeof(Counts) == 4 * sizeof(int) && sizeof(Place) == 4 * sizeof(int));
  const NmsArguments<T> arguments{
      boxes.const_data_ptr<T>(),
      scores.const_data_ptr<T>(),
      groups.const_data_ptr<int64_t>(),
      images,
      slots,
      max_out,
      words,
      round_down<T>(iou_threshold),
      num_boxes.mutable_data_ptr<int>(),
      list.mutable_data_ptr<int>(),
      reinterpret_cast<Counts*>(counts.mutable_data_ptr<int>()),
      sorted_boxes.mutable_data_ptr<T>(),
      reinterpret_cast<Place*>(places.mutable_data_ptr<int>()),
      reinterpret_cast<Word*>(masks.mutable_data_ptr<int64_t>()),
      kept.mutable_data_ptr<int>(),
      kept_before.mutable_data_ptr<int>(),
      suppressed.mutable_data_ptr<int>(),
      kept_slots.mutable_data_ptr<int>(),
      indices.mutable_data_ptr<int64_t>(),
      count.mutable_data_ptr<int64_t>(),
  };
  const int64_t blocks = images * ceil_div<int64_t>(slots, kThreads);
  launch("nms_compact", nms_compact<T>, blocks, arguments);
  launch("nms_rank", nms_rank<T>, kResidentBlocks, arguments);
  launch("nms_sort", nms_sort<T>, std::min(blocks, kResidentBlocks), arguments);
  launch("nms_compare", nms_compare<T>, kResidentBlocks, arguments);
  const int64_t step = max_out <= kFewKept ? slots : int64_t(words) * kWordBits;
  for (int64_t begin = 0; begin < slots; begin += step) {
    const int64_t end = std::min(begin + step, slots);
    launch("nms_sweep", nms_sweep<T>, kResidentBlocks, arguments, int(begin), int(end));
    if (end == slots) break;
    launch("nms_suppress", nms_suppress<T>, kResidentBlocks, arguments, int(begin), int(end));
  }
  launch("nms_collect", nms_collect<T>, images, arguments);
}

std::tuple<Tensor, Tensor> nms_padded(Tensor boxes,
                                      Tensor scores,
                                      Tensor groups,
                                      double iou_threshold,
                                      int64_t max_out,
                                      int64_t num_groups) {
  check_nms_arguments(boxes, scores, groups, max_out, num_groups);
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
    nms<T>(boxes, scores, groups, iou_threshold, max_out, indices, count);
  });
  return {indices, count};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("nms_padded", TORCH_BOX(&maskrcnn::nms_padded));
}
