// NMS on CUDA, first half: valid boxes are brought into order, group after group and by score.
#pragma once

#include "nms_cuda.cuh"

namespace maskrcnn {

template <typename T>
__device__ bool is_valid_candidate(const NmsArguments<T>& a, int64_t image, int64_t index) {
  return index < a.candidates &&
         a.scores[image * a.candidates + index] > -std::numeric_limits<T>::infinity();
}

// Counts the valid candidates of each bucket, and finds their largest coordinate.
//
// Mapping: thread -> candidate; block -> kThreads candidates of one image. Shared memory: the
// counts of the block, [kBuckets], which one atomicAdd each adds to those of the image. The largest
// coordinate, which only offsets need, is merged by shuffles and one atomicMax.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_count(const NmsArguments<T> a) {
  __shared__ int counts[kBuckets];
  const int64_t blocks = ceil_div<int64_t>(a.candidates, kThreads);
  for (int64_t item = blockIdx.x; item < a.images * blocks; item += gridDim.x) {
    const int64_t image = item / blocks, index = item % blocks * kThreads + threadIdx.x;
    for (int b = threadIdx.x; b < kBuckets; b += kThreads) counts[b] = 0;
    __syncthreads();
    const bool is_valid = is_valid_candidate(a, image, index);
    if (is_valid) atomicAdd(&counts[bucket_of(a.groups[image * a.candidates + index])], 1);
    __syncthreads();
    for (int b = threadIdx.x; b < kBuckets; b += kThreads) {
      if (counts[b]) atomicAdd(&a.bucket_counts[image * kBuckets + b], counts[b]);
    }
    const unsigned ballot = __ballot_sync(~0u, is_valid);
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
    if (threadIdx.x % 32 == 0) atomicMax(&a.largest[image], largest);
  }
}

// Where each bucket begins, from the sizes of all: [kBuckets] -> [kBuckets + 1].
//
// Mapping: lane of the first warp -> kBuckets / 32 buckets; the lanes add up their sums, with those
// 1, 2, 4, 8 and 16 lanes below. Other warps do nothing. The caller has the barrier.
__device__ __forceinline__ void sum_before(const int* counts, int (&begins)[kBuckets + 1]) {
  constexpr int kPerLane = kBuckets / 32;
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x, first = lane * kPerLane;
  int own = 0;
  for (int i = 0; i < kPerLane; ++i) own += counts[first + i];
  int sum = own;  // with those of lower lanes
  for (int distance = 1; distance < 32; distance *= 2) {
    const int lower = __shfl_sync(~0u, sum, (lane - distance) & 31);
    if (lane >= distance) sum += lower;
  }
  if (lane == 31) begins[kBuckets] = sum;
  sum -= own;
  for (int i = 0; i < kPerLane; ++i) {
    begins[first + i] = sum;
    sum += counts[first + i];
  }
}

// Lists the valid candidates, bucket after bucket and in any order within a bucket.
//
// Mapping: thread -> candidate; block -> kThreads candidates of one image, of which it reserves the
// entries of a bucket with one atomicAdd. Shared memory: where the buckets begin, how many
// candidates of the block are in each, and the first entry of these: 3 KiB.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_list(const NmsArguments<T> a) {
  __shared__ int begins[kBuckets + 1];
  __shared__ int counts[kBuckets];
  __shared__ int entries[kBuckets];
  const int64_t blocks = ceil_div<int64_t>(a.candidates, kThreads);
  for (int64_t item = blockIdx.x; item < a.images * blocks; item += gridDim.x) {
    const int64_t image = item / blocks, index = item % blocks * kThreads + threadIdx.x;
    sum_before(a.bucket_counts + image * kBuckets, begins);
    for (int b = threadIdx.x; b < kBuckets; b += kThreads) counts[b] = 0;
    __syncthreads();
    const bool is_valid = is_valid_candidate(a, image, index);
    const int bucket = is_valid ? bucket_of(a.groups[image * a.candidates + index]) : 0;
    const int before = is_valid ? atomicAdd(&counts[bucket], 1) : 0;
    __syncthreads();
    for (int b = threadIdx.x; b < kBuckets; b += kThreads) {
      if (counts[b]) {
        entries[b] = begins[b] + atomicAdd(&a.bucket_used[image * kBuckets + b], counts[b]);
      }
      if (item % blocks == 0) a.bucket_begins[image * (kBuckets + 1) + b] = begins[b];
    }
    if (item % blocks == 0 && threadIdx.x == 0) {
      a.bucket_begins[image * (kBuckets + 1) + kBuckets] = a.num_valid[image] = begins[kBuckets];
    }
    __syncthreads();
    if (is_valid) a.valid[image * a.candidates + entries[bucket] + before] = int(index);
  }
}

// Blocks that share the comparisons of one tile of boxes. Estimate: with 8, the 4,819 boxes of the
// RPN are 152 blocks, more than multiprocessors.
constexpr int kSplits = 8;

// Counts, for each valid box, what of its bucket comes before it: boxes of lower groups, and better
// ones of its own.
//
// Mapping: block -> a tile of kThreads boxes, and every kSplits-th tile of the boxes in their
// buckets; thread -> one box, which it compares with all others of its bucket in these tiles.
// Shared memory: score, group and index of the tile's others, [kThreads] each (4 to 5 KiB); the
// threads of a bucket read the same entry at the same time, which is a broadcast.
//
// Counting all pairs of a bucket takes as many comparisons as the IoUs of a group do, and needs one
// launch. Boxes need no stable order in the list: ties are broken by the lower index.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_rank(const NmsArguments<T> a) {
  __shared__ T scores[kThreads];
  __shared__ int64_t groups[kThreads];
  __shared__ int indices[kThreads];

  const auto parts = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads) * kSplits; };
  for (BlockItems items(a.num_valid, a.images, parts); !items.done(); items.next()) {
    const int64_t image = items.row();
    const int boxes = a.num_valid[image], split = int(items.item() % kSplits);
    const int first = int(items.item() / kSplits) * kThreads;
    const int last = boxes - first < kThreads ? boxes - 1 : first + kThreads - 1;
    const int* valid = a.valid + image * a.candidates;
    const int* begins = a.bucket_begins + image * (kBuckets + 1);
    const T* image_scores = a.scores + image * a.candidates;
    const int64_t* image_groups = a.groups + image * a.candidates;
    const int end = begins[bucket_of(image_groups[valid[last]]) + 1];

    const int entry = first + int(threadIdx.x);
    const int index = valid[entry < last ? entry : last];
    const T score = image_scores[index];
    const int64_t group = image_groups[index];
    const int own_begin = begins[bucket_of(group)], own_end = begins[bucket_of(group) + 1];
    Order sum = {0, 0, 0};
    for (int tile = begins[bucket_of(image_groups[valid[first]])] + split * kThreads; tile < end;
         tile += kSplits * kThreads) {
      if (tile + int(threadIdx.x) < end) {
        const int other = valid[tile + threadIdx.x];
        indices[threadIdx.x] = other;
        scores[threadIdx.x] = image_scores[other];
        groups[threadIdx.x] = image_groups[other];
      }
      __syncthreads();
      const int i_begin = own_begin > tile ? own_begin - tile : 0;
      const int i_end = own_end - tile < kThreads ? own_end - tile : kThreads;
      for (int i = i_begin; i < i_end; ++i) {
        const bool better = scores[i] > score || (scores[i] == score && indices[i] < index);
        const bool same = groups[i] == group;
        sum.group_begin += groups[i] < group;
        sum.offset += better && same;
        sum.group_size += same;
      }
      __syncthreads();  // the next tile overwrites shared memory
    }
    if (entry > last) continue;
    Order& total = a.orders[image * a.candidates + entry];
    if (sum.group_begin) atomicAdd(&total.group_begin, sum.group_begin);
    if (sum.offset) atomicAdd(&total.offset, sum.offset);
    if (sum.group_size) atomicAdd(&total.group_size, sum.group_size);
  }
}

// Moves boxes to their positions, shifted by the offset of their group where the image has few, and
// resets what the later kernels count in.
//
// Mapping: thread -> a valid box; block -> kThreads of them. No shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_sort(const NmsArguments<T> a) {
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads); };
  for (BlockItems items(a.num_valid, a.images, blocks); !items.done(); items.next()) {
    const int64_t entry = items.item() * kThreads + threadIdx.x;
    if (entry >= a.num_valid[items.row()]) continue;
    const int64_t image = items.row(), first = image * a.candidates;
    const int index = a.valid[first + entry];
    const Order order = a.orders[first + entry];
    const int bucket = bucket_of(a.groups[first + index]);
    const int begin = a.bucket_begins[image * (kBuckets + 1) + bucket] + order.group_begin;
    const int64_t to = first + begin + order.offset;
    const T offset = a.num_valid[image] <= a.offset_limit
                         ? group_offset(a.groups[first + index], value_of<T>(a.largest[image]))
                         : T(0);
    for (int i = 0; i < 4; ++i) {
      a.sorted_boxes[4 * to + i] = a.boxes[4 * (first + index) + i] + offset;
    }
    a.sorted[to] = {index, begin, order.group_size};
    a.kept_before[to] = a.suppressed[to] = 0;
    a.kept_index[to] = kNoBox;
  }
}

}  // namespace maskrcnn
