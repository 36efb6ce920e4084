// What the CUDA kernels of NMS share: their arguments, and how blocks divide the work.
#pragma once

#include <limits>

#include "../common/block_items.cuh"
#include "../common/cuda_launch.cuh"
#include "../common/ordered_bits.h"
#include "nms.h"

namespace maskrcnn {

using Word = unsigned long long;  // one bit per box
constexpr int kWordBits = 64;

// Masks are compared within chunks of a group. A chunk has up to kMaxWords words, so that the
// sweep's array `removed` takes 1.3 KiB of shared memory and a mask at most as much device memory
// per box. Above kMaxWords * 64 = 10,240 candidates per image the chunks shrink to 32 words, 256
// bytes per box: 100,000 candidates then take 26 MB rather than 128 MB.
constexpr int kMaxWords = 160;
constexpr int kManyCandidatesWords = 32;

constexpr int words_of_chunk(int64_t candidates) {
  const int64_t words = (candidates + kWordBits - 1) / kWordBits;
  const int64_t most = words <= kMaxWords ? kMaxWords : kManyCandidatesWords;
  return int(words < most ? words : most);
}
// In training the RPN has up to 2,000 candidates per level, and 819 at the coarsest one of an image
// of 800 x 1344. They are one chunk, and so take one launch of nms_sweep.
static_assert(words_of_chunk(4 * 2000 + 819) * kWordBits >= 4 * 2000 + 819);

// Candidates are first sorted into buckets by group, so that only those of one bucket are compared.
// A group has one bucket. Estimate: enough for the classes of COCO or the levels of a pyramid to
// have one each; more groups share them.
constexpr int kBuckets = 256;

__device__ __forceinline__ int bucket_of(int64_t group) {
  return int(uint64_t(group) % kBuckets);
}

// For at most so many results per image, one launch of nms_sweep does all chunks of a group. Above
// it, comparing later chunks with all kept boxes is too much for one block per group: nms_suppress
// shares it among all blocks, at the price of two launches per chunk. In inference the model keeps
// at most 1,000 proposals and 100 detections. Where the break-even lies is an estimate.
constexpr int kFewKept = 1024;

// Positions in an image are kept in an int, with room to add the size of a chunk.
constexpr int kMaxBoxes = 1 << 30;
constexpr int kNoBox = -1;

// Counts of the boxes of a bucket that come before a box, and the size of its group.
struct Order {
  int group_begin;  // boxes of lower groups: where its group begins
  int offset;       // boxes of its group with a better score
  int group_size;
};

// A box at its position: group after group, each group by score.
struct SortedBox {
  int index;  // into [0, K)
  int group_begin, group_size;
};

// A group that is done.
struct KeptGroup {
  int begin;  // its first position
  int count;  // of its boxes that are kept
};

// Shapes: N images, K candidates per image, of which V are valid. V is known on the device only.
// T: float or double. Arrays are [N, K] unless marked.
template <typename T>
struct NmsArguments {
  const T* boxes;  // [N, K, 4]
  const T* scores;
  const int64_t* groups;
  int64_t images, candidates, max_out;
  int64_t offset_limit;  // images with at most so many valid boxes have them shifted by group
  int words;             // of a chunk
  T threshold;

  // Zero at first.
  int* bucket_counts;          // valid candidates per bucket, [N, kBuckets]
  int* bucket_used;            // entries of `valid` that are written, [N, kBuckets]
  ordered_bits_t<T>* largest;  // coordinate of the valid boxes, [N]
  int* num_groups;             // entries of kept_groups, [N]
  int* total_kept;             // sum of their counts, [N]
  Order* orders;               // [N, V], in the order of `valid`

  int* num_valid;      // V, [N]
  int* bucket_begins;  // [N, kBuckets + 1]
  int* valid;          // [N, V]: indices of valid candidates, bucket after bucket
  T* sorted_boxes;     // by position, [N, K, 4]
  SortedBox* sorted;   // by position
  Word* masks;         // by position, [N, K, words]
  int* kept;           // per group from its begin on: offsets in the group of kept boxes
  int* kept_index;     // likewise, their index; kNoBox where a group keeps no more
  T* kept_score;       // likewise, their score
  int* kept_before;    // at the position where a chunk begins: kept boxes of its group before it
  int* suppressed;     // by position: whether a box kept in an earlier chunk suppresses it
  KeptGroup* kept_groups;  // in any order
  int64_t* indices;        // [N, max_out]
  int64_t* num_kept;       // [N]

  __device__ int chunk() const { return words * kWordBits; }
};

template <typename T>
__device__ bool box_suppresses(const T* better, const T* other, T threshold) {
  return suppresses(better[0], better[1], better[2], better[3],
                    box_area(better[0], better[1], better[2], better[3]), other[0], other[1],
                    other[2], other[3], box_area(other[0], other[1], other[2], other[3]),
                    threshold);
}

}  // namespace maskrcnn
