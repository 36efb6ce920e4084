// NMS on CUDA, second half: which of the ordered boxes are kept.
//
// A mask has one bit per box of the chunk, in words. In the words after its own, bit j of box i is
// set where box i suppresses box j. In its own word, bit j is set where box j, before i, suppresses
// i. So the word of a box tells what it depends on, and the others what depends on it.
//
// Example with words of 4 bits instead of 64: a group of six boxes, best first, in which 0 overlaps
// 2 and 5, 1 overlaps 3, and 3 overlaps 4. The lowest bit is written on the right.
//
//   box i   word 0 (boxes 3 2 1 0)   word 1 (boxes 5 4)
//     0              0 0 0 0                 1 0
//     1              0 0 0 0                 0 0
//     2              0 0 0 1                 0 0
//     3              0 0 1 0                 0 1
//     4              not written             0 0       (boxes of word 0 come before 4)
//     5              not written             0 0
//
// The sweep goes word by word. `removed` has a bit per box that a kept box suppresses.
//
//   word 0: alive = ~removed = 1111. Suppose that all are kept; then 2 and 3 are suppressed, and
//           0011 are kept. Suppose that; again 0011 are kept: done. The masks of 0 and 1 go to the
//           words that follow: removed of word 1 = 10 | 00 = 10.
//   word 1: alive = ~10 = 01. Keep box 4. Box 3 does suppress 4, but was not kept. Kept: 0, 1, 4.
#pragma once

#include "nms_cuda.cuh"

namespace maskrcnn {

// Whether one of kept[first .. last) suppresses the box at offset `other` of the group.
// boxes: [group's size, 4].
template <typename T>
__device__ bool any_suppresses(
    const T* boxes, const int* kept, int first, int last, int other, T threshold) {
  const T* box = boxes + 4 * int64_t(other);
  for (int k = first; k < last; ++k) {
    if (box_suppresses(boxes + 4 * int64_t(kept[k]), box, threshold)) return true;
  }
  return false;
}

// Writes the mask of each box, from its own word to the last of its chunk.
//
// Mapping: warp -> one box; lane -> boxes 64 w + lane and 64 w + 32 + lane for each word w. A
// ballot gives 32 bits at once, so a word takes two. Which of two boxes is the better one does not
// matter for their IoU, to the bit: the area of a box with NaN is NaN, and so is every IoU with it.
// No shared memory: the boxes of a group are read through L1.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_compare(const NmsArguments<T> a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kWarps); };
  for (BlockItems items(a.num_valid, a.images, blocks); !items.done(); items.next()) {
    const int64_t position = items.item() * kWarps + warp;
    if (position >= a.num_valid[items.row()]) continue;  // the whole warp
    const int64_t first_box = items.row() * a.candidates;
    const SortedBox own_box = a.sorted[first_box + position];
    const T* group = a.sorted_boxes + 4 * (first_box + own_box.group_begin);
    const int own = int(position) - own_box.group_begin;
    const int chunk = own / a.chunk() * a.chunk();
    const int end = own_box.group_size < chunk + a.chunk() ? own_box.group_size : chunk + a.chunk();
    Word* mask = a.masks + (first_box + position) * a.words;
    T box[4];
    for (int i = 0; i < 4; ++i) box[i] = group[4 * int64_t(own) + i];
    for (int first = own / kWordBits * kWordBits; first < end; first += kWordBits) {
      Word word = 0;
      for (int half = 0; half < 2; ++half) {
        const int other = first + half * 32 + lane;
        const bool asked = first > own ? other < end : other < own;
        const bool bit = asked && box_suppresses(box, group + 4 * int64_t(other), a.threshold);
        word |= Word(__ballot_sync(~0u, bit)) << (half * 32);
      }
      if (lane == 0) mask[(first - chunk) / kWordBits] = word;
    }
  }
}

// The greedy choice within one word: a box is kept if it is alive and no kept box before it
// suppresses it, up to `most` boxes. Found as a fixpoint: from a guess of what is kept follows a
// better one. The first n bits are right after n rounds, but mostly few rounds are enough.
//
// Mapping: lane -> boxes lane and lane + 32, whose masks of boxes before them are `low` and `high`.
// All lanes of the warp call it, and have the result.
__device__ __forceinline__ Word keep_in_word(Word alive, Word low, Word high, int64_t most) {
  const int lane = threadIdx.x % 32;
  const auto vote = [](bool first, bool second) {
    const Word bits = __ballot_sync(~0u, first);
    return bits | Word(__ballot_sync(~0u, second)) << 32;
  };
  low &= (Word(1) << lane) - 1;  // only boxes before: no circle, in which the loop would not end
  high &= (Word(1) << (lane + 32)) - 1;
  Word kept = alive, guess;
  do {
    guess = kept;
    kept = alive & vote((low & guess) == 0, (high & guess) == 0);
  } while (kept != guess);
  const auto before = [&](int box) { return __popcll(kept & ((Word(1) << box) - 1)); };
  return kept & vote(before(lane) < most, before(lane + 32) < most);
}

// Sets bits of a word in shared memory; the hardware has no such atomic for 64 bits.
__device__ __forceinline__ void atomic_or(Word* to, Word bits) {
  unsigned* halves = reinterpret_cast<unsigned*>(to);
  if (const unsigned low = unsigned(bits)) atomicOr(&halves[0], low);
  if (const unsigned high = unsigned(bits >> 32)) atomicOr(&halves[1], high);
}

// Decides about the boxes at the offsets [begin, end) of each group, which are whole chunks.
//
// Mapping: block -> one group: the item of the group's first box does the work, the others end at
// once. For each word, thread i < 64 loads the word of box i itself; each warp makes the greedy
// choice within the word, all the same; thread i < 64 writes box i if it is kept; and all threads
// merge the masks of the kept boxes into `removed`, one (box, word) pair each.
// Shared memory: removed [kMaxWords], one bit per box of the chunk; own_words [64]. 4 blocks per
// multiprocessor: there are often more groups (classes x images) than multiprocessors.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    nms_sweep(const NmsArguments<T> a, int begin, int end) {
  __shared__ Word removed[kMaxWords];
  __shared__ Word own_words[kWordBits];

  const auto all = [](int64_t boxes) { return boxes; };
  for (BlockItems items(a.num_valid, a.images, all); !items.done(); items.next()) {
    const int64_t position = items.item(), first_box = items.row() * a.candidates + position;
    const SortedBox* sorted = a.sorted + first_box;
    const int size = sorted->group_size;
    // All threads of the block see the same values here, so all skip the item or none.
    if (sorted->group_begin != position || size <= begin) continue;
    const T* boxes = a.sorted_boxes + 4 * first_box;
    const Word* masks = a.masks + first_box * a.words;
    int* kept = a.kept + first_box;
    const int* suppressed = a.suppressed + first_box;
    int* kept_before = a.kept_before + first_box;
    const int num_before = kept_before[begin];
    int num_kept = num_before;
    for (int chunk = begin; chunk < end && chunk < size && num_kept < a.max_out;
         chunk += a.chunk()) {
      // Boxes of the chunk that boxes of earlier chunks suppress: nms_suppress has compared those
      // kept before `begin`, this kernel compares those that it kept itself.
      const int in_chunk = size - chunk < a.chunk() ? size - chunk : a.chunk();
      for (int w = threadIdx.x; w < a.words; w += kThreads) removed[w] = 0;
      __syncthreads();
      for (int i = threadIdx.x; i < in_chunk && num_kept > 0; i += kThreads) {
        if (suppressed[chunk + i] ||
            any_suppresses(boxes, kept, num_before, num_kept, chunk + i, a.threshold)) {
          atomic_or(&removed[i / kWordBits], Word(1) << (i % kWordBits));
        }
      }
      const int words = ceil_div(in_chunk, kWordBits);
      for (int w = 0; w < words && num_kept < a.max_out; ++w) {
        const int first = w * kWordBits;
        const int in_word = in_chunk - first < kWordBits ? in_chunk - first : kWordBits;
        const Word* rows = masks + int64_t(chunk + first) * a.words;
        const int i = threadIdx.x;
        if (i < kWordBits) own_words[i] = i < in_word ? rows[i * a.words + w] : 0;
        __syncthreads();
        const Word alive = ~removed[w] & (~Word(0) >> (kWordBits - in_word));
        const Word found =
            keep_in_word(alive, own_words[i % 32], own_words[i % 32 + 32], a.max_out - num_kept);
        if (i < in_word && found >> i & 1) {
          const int entry = num_kept + __popcll(found & ((Word(1) << i) - 1));
          const int index = sorted[chunk + first + i].index;
          kept[entry] = chunk + first + i;
          a.kept_index[first_box + entry] = index;
          a.kept_score[first_box + entry] = a.scores[items.row() * a.candidates + index];
        }
        const int later = words - w - 1;
        for (int j = threadIdx.x; j < in_word * later; j += kThreads) {
          const int row = j / later, word = w + 1 + j % later;
          if (found >> row & 1) atomic_or(&removed[word], rows[int64_t(row) * a.words + word]);
        }
        num_kept += __popcll(found);
        __syncthreads();
      }
    }
    if (threadIdx.x != 0) continue;
    if (end < size) {
      kept_before[end] = num_kept;
    } else {
      const int entry = atomicAdd(&a.num_groups[items.row()], 1);
      a.kept_groups[items.row() * a.candidates + entry] = {int(position), num_kept};
      atomicAdd(&a.total_kept[items.row()], num_kept);
    }
  }
}

// Marks the boxes of later chunks that a box kept in [begin, end) suppresses.
//
// Mapping: thread -> one box; it compares the box with the kept ones until one suppresses it. No
// shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    nms_suppress(const NmsArguments<T> a, int begin, int end) {
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kThreads); };
  for (BlockItems items(a.num_valid, a.images, blocks); !items.done(); items.next()) {
    const int64_t position = items.item() * kThreads + threadIdx.x;
    if (position >= a.num_valid[items.row()]) continue;
    const int64_t first_box = items.row() * a.candidates;
    const int64_t group = first_box + a.sorted[first_box + position].group_begin;
    const int own = int(first_box + position - group);
    if (own < end || a.suppressed[group + own]) continue;
    a.suppressed[group + own] =
        any_suppresses(a.sorted_boxes + 4 * group, a.kept + group, a.kept_before[group + begin],
                       a.kept_before[group + end], own, a.threshold);
  }
}

// How many of a group's kept boxes, which are in order, come before a box.
// scores, indices: [count].
template <typename T>
__device__ int count_better(const T* scores, const int* indices, int count, T score, int index) {
  int low = 0;
  while (low < count) {
    const int middle = (low + count) / 2;
    if (scores[middle] > score || (scores[middle] == score && indices[middle] < index)) {
      low = middle + 1;
    } else {
      count = middle;
    }
  }
  return low;
}

// Writes the indices of the kept boxes by score over all groups, and zeros as padding.
//
// Mapping: warp -> one kept box; lane -> every 32nd group of the image, in which it counts by
// binary search the kept boxes that are better. The sum of these counts is the box's rank.
// Estimate: 8,000 kept boxes of 80 groups take 640,000 searches of 7 steps, where counting all
// pairs takes 64 million comparisons. No shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) nms_collect(const NmsArguments<T> a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.images * a.max_out;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t total = a.total_kept[i / a.max_out], rank = i % a.max_out;
    if (rank >= total) a.indices[i] = 0;
    if (rank == 0) a.num_kept[i / a.max_out] = total < a.max_out ? total : a.max_out;
  }
  const auto blocks = [](int64_t boxes) { return ceil_div<int64_t>(boxes, kWarps); };
  for (BlockItems items(a.num_valid, a.images, blocks); !items.done(); items.next()) {
    const int64_t position = items.item() * kWarps + warp, first = items.row() * a.candidates;
    if (position >= a.num_valid[items.row()]) continue;  // the whole warp
    const int index = a.kept_index[first + position];
    if (index == kNoBox) continue;
    const T score = a.kept_score[first + position];
    int rank = 0;
    for (int g = lane; g < a.num_groups[items.row()]; g += 32) {
      const KeptGroup group = a.kept_groups[first + g];
      rank += count_better(a.kept_score + first + group.begin, a.kept_index + first + group.begin,
                           group.count, score, index);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      rank += __shfl_xor_sync(~0u, rank, distance);
    }
    if (lane == 0 && rank < a.max_out) a.indices[items.row() * a.max_out + rank] = index;
  }
}

}  // namespace maskrcnn
