// NMS on CUDA, first half: valid boxes are brought into order, group after group and by score.
#pragma once

#include "nms_cuda.cuh"

namespace maskrcnn {

// Lists the valid candidates, in any order, counts them and finds their largest coordinate.
//
// Mapping: thread -> candidate; block -> kThreads candidates of one image.
//
// The valid lanes of a warp reserve their entries with one atomicAdd on the image's count. Lane i
// takes the entry that as many valid lanes precede as there are set bits below bit i of the ballot.
// The largest coordinate, which only offsets need, is merged by shuffles and one atomicMax.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_compact(const NmsArguments<T> a) {
  const int64_t blocks = ceil_div<int64_t>(a.candidates, kThreads);
  for (int64_t item = blockIdx.x; item < a.images * blocks; item += gridDim.x) {
    const int64_t image = item / blocks, index = item % blocks * kThreads + threadIdx.x;
    const bool is_valid = index < a.candidates && a.scores[image * a.candidates + index] >
                                                      -std::numeric_limits<T>::infinity();
    const unsigned ballot = __ballot_sync(~0u, is_valid);
    const int lane = threadIdx.x % 32;
    int first = 0;
    if (lane == 0 && ballot != 0) first = atomicAdd(&a.num_valid[image], __popc(ballot));
    first = __shfl_sync(~0u, first, 0);
    if (is_valid) {
      const int entry = first + __popc(ballot & ((1u << lane) - 1));
      a.valid[image * a.candidates + entry] = int(index);
    }
    if (a.offset_limit == 0 || ballot == 0) continue;  // the whole warp
    ordered_bits_t<T> largest = 0;                     // smaller than that of any coordinate
    for (int i = 0; is_valid && i < 4; ++i) {
      const auto bits = ordered_bits(a.boxes[4 * (image * a.candidates + index) + i]);
      if (bits > largest) largest = bits;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const auto other = __shfl_xor_sync(~0u, largest, distance);
      if (other > largest) largest = other;
    }
    if (lane == 0) atomicMax(&a.largest[image], largest);
  }
}

// Counts, for each valid box, the boxes before it: in the image, and in its group.
//
// Mapping: block -> a tile of kThreads boxes x kThreads others of one image; thread -> one box,
// which it compares with all others of the tile. Items: ceil(V / kThreads)^2 tiles per image.
// Shared memory: score, group and index of the tile's others, [kThreads] each (4 to 5 KiB); every
// thread reads the same entry at the same time, which is a broadcast.
//
// Counting all pairs takes V^2 comparisons, as the IoUs of a single group do, and needs one launch.
// Boxes need no stable order in the list: ties are broken by the lower index. Estimate: faster than
// a radix sort of all K candidates up to some 20,000 valid boxes, slower above.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_rank(const NmsArguments<T> a) {
  __shared__ T scores[kThreads];
  __shared__ int64_t groups[kThreads];
  __shared__ int indices[kThreads];

  const auto tiles = [](int64_t boxes) {
    const int64_t side = ceil_div<int64_t>(boxes, kThreads);
    return side * side;
  };
  for (BlockItems items(a.num_valid, a.images, tiles); !items.done(); items.next()) {
    const int64_t image = items.row(), boxes = a.num_valid[image];
    const int64_t side = ceil_div<int64_t>(boxes, kThreads);
    const int64_t entry = items.item() / side * kThreads + threadIdx.x;
    const int64_t first_other = items.item() % side * kThreads;
    const int others = int(boxes - first_other < kThreads ? boxes - first_other : kThreads);
    const int* valid = a.valid + image * a.candidates;
    const T* image_scores = a.scores + image * a.candidates;
    const int64_t* image_groups = a.groups + image * a.candidates;
    if (int(threadIdx.x) < others) {
      const int index = valid[first_other + threadIdx.x];
      indices[threadIdx.x] = index;
      scores[threadIdx.x] = image_scores[index];
      groups[threadIdx.x] = image_groups[index];
    }
    __syncthreads();
    if (entry < boxes) {
      const int index = valid[entry];
      const T score = image_scores[index];
      const int64_t group = image_groups[index];
      Order sum = {0, 0, 0, 0};
      for (int i = 0; i < others; ++i) {
        const bool better = scores[i] > score || (scores[i] == score && indices[i] < index);
        const bool same = groups[i] == group;
        sum.rank += better;
        sum.group_begin += groups[i] < group;
        sum.offset += better && same;
        sum.group_size += same;
      }
      Order& total = a.orders[image * a.candidates + entry];
      if (sum.rank) atomicAdd(&total.rank, sum.rank);
      if (sum.group_begin) atomicAdd(&total.group_begin, sum.group_begin);
      if (sum.offset) atomicAdd(&total.offset, sum.offset);
      if (sum.group_size) atomicAdd(&total.group_size, sum.group_size);
    }
    __syncthreads();  // the next tile overwrites shared memory
  }
}

// Moves boxes to their positions, shifted by the offset of their group where the image has few, and
// resets what the later kernels count in.
//
// Mapping: thread -> a valid box; block -> kThreads of them.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_sort(const NmsArguments<T> a) {
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads); };
  for (BlockItems items(a.num_valid, a.images, blocks); !items.done(); items.next()) {
    const int64_t entry = items.item() * kThreads + threadIdx.x;
    if (entry >= a.num_valid[items.row()]) continue;
    const int64_t image = items.row(), first = image * a.candidates;
    const int index = a.valid[first + entry];
    const Order order = a.orders[first + entry];
    const int64_t to = first + order.group_begin + order.offset;
    const T offset = a.num_valid[image] <= a.offset_limit
                         ? group_offset(a.groups[first + index], value_of<T>(a.largest[image]))
                         : T(0);
    for (int i = 0; i < 4; ++i) {
      a.sorted_boxes[4 * to + i] = a.boxes[4 * (first + index) + i] + offset;
    }
    a.sorted[to] = {index, order.rank, order.group_begin, order.group_size};
    a.kept_before[to] = a.suppressed[to] = 0;
    a.kept_by_rank[first + order.rank] = -1;
  }
}

}  // namespace maskrcnn
