// NMS on the CPU. The valid candidates of an image are sorted by score and divided into their
// groups. Each group is solved on its own, and the kept boxes of all groups are then listed by
// score.
//
// Within a group, a candidate is compared with the boxes kept so far, 32 at a time, until one of
// them suppresses it. All groups visit the best max_out candidates of their image, then as many
// again, then twice as many, and so on, until the image has max_out boxes: those that follow in the
// order of scores cannot be among them.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "../common/parallel.h"
#include "../common/radix_sort.h"
#include "arguments.h"
#include "nms.h"

namespace maskrcnn {
namespace {

constexpr int64_t kVector = 32;  // kept boxes that a candidate is compared with at a time

// In a large group the threads share blocks of kCandidates: in parallel, each is compared with the
// boxes kept before the block; then one thread goes through those that are left. A thread takes at
// least kPairsPerThread comparisons, some milliseconds of work (estimate).
constexpr int64_t kCandidates = 1024;
constexpr int64_t kPairsPerThread = 1 << 21;

// The boxes that were kept, as a structure of arrays in which each group has a range of its own.
template <typename T>
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t capacity) : stride_(capacity + kVector), data_(5 * stride_) {}

  void set(int64_t i, const T* box) {
    for (int64_t c = 0; c < 4; ++c) data_[c * stride_ + i] = box[c];
    data_[4 * stride_ + i] = box_area(box[0], box[1], box[2], box[3]);
  }

  // Whether one of the boxes [begin, end) suppresses `box`.
  ALWAYS_INLINE bool suppress(const T* box, int64_t begin, int64_t end, T threshold) const {
    const T x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
    const T area = box_area(x1, y1, x2, y2);
    for (int64_t i = begin; i < end; i += kVector) {
      const T* kept = data_.data() + i;
      const int lanes = std::min(end - i, kVector);
      int any = 0;
      for (int k = 0; k < kVector; ++k) {
        any |= (k < lanes) & suppresses(kept[k], kept[stride_ + k], kept[2 * stride_ + k],
                                        kept[3 * stride_ + k], kept[4 * stride_ + k], x1, y1, x2,
                                        y2, area, threshold);
      }
      if (any) return true;
    }
    return false;
  }

 private:
  int64_t stride_;
  std::vector<T> data_;  // x1, y1, x2, y2, area
};

struct Candidate {
  int64_t index;  // of its box in the image, in [0, K)
  int64_t rank;   // of its score in the image
};

// A group of an image. Its candidates are [begin, end), by descending score. KeptBoxes has room for
// all of them at the same indices.
struct Group {
  int64_t image, begin, end;
  int64_t next;      // the first candidate that was not visited yet
  int64_t stop;      // the end of those to visit next
  int64_t kept = 0;  // boxes
};

// Visits the candidates [next, stop) of a group, at most until max_out boxes are kept. Sets
// kept_ranks[rank] for those kept.
template <typename T>
void visit(Group& group,
           const T* boxes,
           const Candidate* candidates,
           KeptBoxes<T>& kept,
           T threshold,
           int64_t max_out,
           char* kept_ranks) {
  std::vector<char> alive(std::min(kCandidates, group.stop - group.next));
  for (; group.next < group.stop && group.kept < max_out; group.next += alive.size()) {
    const Candidate* block = candidates + group.next;
    const int64_t size = std::min(kCandidates, group.stop - group.next);
    const int64_t before = group.begin + group.kept;
    const int64_t grain = kPairsPerThread / (group.kept + 1) + 1;
    alive.resize(size);
    torch::stable::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
      with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
        for (int64_t i = begin; i < end; ++i) {
          alive[i] = !kept.suppress(boxes + 4 * block[i].index, group.begin, before, threshold);
        }
      });
    });
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      for (int64_t i = 0; i < size && group.kept < max_out; ++i) {
        const T* box = boxes + 4 * block[i].index;
        const int64_t end = group.begin + group.kept;
        if (!alive[i] || kept.suppress(box, before, end, threshold)) continue;
        kept.set(end, box);
        kept_ranks[block[i].rank] = 1;
        ++group.kept;
      }
    });
  }
  group.next = group.stop;
}

// The valid candidates of one image, by score and by group.
struct Ranking {
  std::vector<int64_t> indices;       // by descending score
  std::vector<Candidate> candidates;  // group after group, each by descending score
  std::vector<int64_t> group_begin;   // [num_groups + 1]
  std::vector<char> kept;             // by rank
};

template <typename T>
Ranking rank(const T* scores, const int64_t* groups, int64_t count, int64_t num_groups) {
  std::vector<Ranked<T>> by_score;
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] > -std::numeric_limits<T>::infinity()) {
      by_score.push_back({ordered_bits(scores[i]), i});
    }
  }
  radix_sort_descending(by_score);
  Ranking ranking;
  for (const Ranked<T>& entry : by_score) ranking.indices.push_back(entry.index);
  ranking.group_begin.assign(num_groups + 1, 0);
  for (const int64_t i : ranking.indices) ++ranking.group_begin[groups[i] + 1];
  for (int64_t g = 0; g < num_groups; ++g) ranking.group_begin[g + 1] += ranking.group_begin[g];
  std::vector<int64_t> next(ranking.group_begin.begin(), ranking.group_begin.end() - 1);
  const int64_t valid = ranking.indices.size();
  ranking.candidates.resize(valid);
  for (int64_t r = 0; r < valid; ++r) {
    const int64_t index = ranking.indices[r];
    ranking.candidates[next[groups[index]]++] = {index, r};
  }
  ranking.kept.assign(valid, 0);
  return ranking;
}

// The image's boxes [K, 4], of which the candidates are shifted by the offset of their group.
template <typename T>
std::unique_ptr<T[]> shift_by_group(const T* boxes,
                                    const int64_t* groups,
                                    int64_t count,
                                    const std::vector<int64_t>& candidates) {
  T largest = -std::numeric_limits<T>::infinity();
  for (const int64_t c : candidates) {
    for (int64_t i = 0; i < 4; ++i) largest = larger(boxes[4 * c + i], largest);
  }
  std::unique_ptr<T[]> shifted(new T[4 * count]);
  for (const int64_t c : candidates) {
    const T offset = group_offset(groups[c], largest);
    for (int64_t i = 0; i < 4; ++i) shifted[4 * c + i] = boxes[4 * c + i] + offset;
  }
  return shifted;
}

template <typename T>
void nms_images(const T* boxes,
                const T* scores,
                const int64_t* groups,
                int64_t num_images,
                int64_t num_boxes,
                double iou_threshold,
                int64_t max_out,
                int64_t num_groups,
                int64_t offset_limit,
                int64_t* indices,
                int64_t* counts) {
  const T threshold = round_down<T>(iou_threshold);
  std::vector<Ranking> rankings(num_images);
  std::vector<std::unique_ptr<T[]>> shifted(num_images);  // null for images of many boxes
  parallel_tasks(num_images, [&](int64_t n) {
    const int64_t* image_groups = groups + n * num_boxes;
    rankings[n] = rank(scores + n * num_boxes, image_groups, num_boxes, num_groups);
    const auto& candidates = rankings[n].indices;
    if (int64_t(candidates.size()) <= offset_limit) {
      shifted[n] = shift_by_group(boxes + 4 * n * num_boxes, image_groups, num_boxes, candidates);
    }
  });

  std::vector<Group> unfinished;
  std::vector<KeptBoxes<T>> kept;
  for (int64_t n = 0; n < num_images; ++n) {
    const auto& begin = rankings[n].group_begin;
    kept.emplace_back(begin.back());
    for (int64_t g = 0; g < num_groups; ++g) {
      unfinished.push_back({n, begin[g], begin[g + 1], begin[g], begin[g]});
    }
  }
  std::vector<int64_t> found(num_images);  // boxes kept so far
  for (int64_t rank_end = max_out;; rank_end *= 2) {
    std::erase_if(unfinished, [&](const Group& group) {
      return group.next == group.end || found[group.image] >= max_out;
    });
    if (unfinished.empty()) break;
    int64_t pairs = 0;
    for (Group& group : unfinished) {
      const Candidate* candidates = rankings[group.image].candidates.data();
      const Candidate* stop =
          std::partition_point(candidates + group.next, candidates + group.end,
                               [&](const Candidate& c) { return c.rank < rank_end; });
      group.stop = stop - candidates;
      const int64_t size = group.stop - group.next;
      pairs += size * (group.kept + size / 2);
    }
    const auto visit_group = [&](int64_t i) {
      Group& group = unfinished[i];
      Ranking& ranking = rankings[group.image];
      const T* own = shifted[group.image].get();
      visit(group, own ? own : boxes + 4 * group.image * num_boxes, ranking.candidates.data(),
            kept[group.image], threshold, max_out, ranking.kept.data());
    };
    const int64_t count = unfinished.size();
    if (pairs > kPairsPerThread && count >= torch::stable::get_num_threads()) {
      parallel_tasks(count, visit_group);
    } else {  // little work, or fewer groups than threads: threads share a group's candidates
      for (int64_t i = 0; i < count; ++i) visit_group(i);
    }
    for (int64_t n = 0; n < num_images; ++n) {
      found[n] = std::count(rankings[n].kept.begin(), rankings[n].kept.end(), 1);
    }
  }

  for (int64_t n = 0; n < num_images; ++n) {
    const Ranking& ranking = rankings[n];
    int64_t listed = 0;
    for (size_t r = 0; r < ranking.indices.size() && listed < max_out; ++r) {
      if (ranking.kept[r]) indices[n * max_out + listed++] = ranking.indices[r];
    }
    counts[n] = listed;
    std::fill(indices + n * max_out + listed, indices + (n + 1) * max_out, 0);
  }
}

std::tuple<Tensor, Tensor> nms_padded(Tensor boxes,
                                      Tensor scores,
                                      Tensor groups,
                                      double iou_threshold,
                                      int64_t max_out,
                                      int64_t num_groups,
                                      int64_t offset_limit) {
  check_nms_arguments(boxes, scores, groups, max_out, num_groups, offset_limit);
  boxes = torch::stable::contiguous(boxes);
  scores = torch::stable::contiguous(scores);
  groups = torch::stable::contiguous(groups);
  const int64_t num_images = boxes.size(0), num_boxes = boxes.size(1);
  const int64_t* group = groups.const_data_ptr<int64_t>();
  num_groups = check_groups(groups, num_groups);  // only those in use
  Tensor indices = torch::stable::new_empty(groups, {num_images, max_out});
  Tensor count = torch::stable::new_empty(groups, {num_images});
  dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto tag) {
    using T = typename decltype(tag)::type;
    nms_images(boxes.const_data_ptr<T>(), scores.const_data_ptr<T>(), group, num_images, num_boxes,
               iou_threshold, max_out, num_groups, offset_limit,
               indices.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>());
  });
  return {indices, count};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("nms_padded", TORCH_BOX(&maskrcnn::nms_padded));
}
