// Run lengths of a binary mask in COCO's format.
//
// The mask is read column by column. counts[0] pixels are off, counts[1] on, counts[2] off, ...: a
// mask that begins with an on pixel has counts[0] == 0, and the counts add up to height * width.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mask_rle {

using Counts = std::vector<uint32_t>;

// Collects runs of pixels into counts: push() them in column order, then finish() once.
class RunWriter {
 public:
  void push(bool on, uint32_t length = 1) {
    if (length == 0) return;
    if (on != on_) {
      counts_.push_back(run_);
      run_ = 0;
      on_ = on;
    }
    run_ += length;
  }

  Counts finish() {
    counts_.push_back(run_);
    return std::move(counts_);
  }

 private:
  Counts counts_;
  uint32_t run_ = 0;
  bool on_ = false;
};

// COCO's compressed text: each count, from the fourth on as the difference from the count two
// before, in groups of five bits, low first, as printable characters.
std::string to_string(const Counts& counts);

// Inverse of to_string. Throws std::invalid_argument on anything to_string cannot have written.
Counts from_string(std::string_view text);

// Throws std::invalid_argument unless the counts add up to height * width.
void check_size(const Counts& counts, int64_t height, int64_t width);

uint64_t area(const Counts& counts);

// (x, y, width, height) of the on pixels; all 0 for an empty mask.
std::array<double, 4> bounding_box(const Counts& counts, int64_t height);

// Union of two masks of the same size, or with `intersect` their intersection.
Counts merge(const Counts& a, const Counts& b, bool intersect);

// The mask that a polygon (x0, y0, x1, y1, ...), in pixels, fills: the same pixels as pycocotools'
// frPyObjects.
Counts from_polygon(const double* xy, int64_t points, int64_t height, int64_t width);

// Soft mask [side, side] pasted into `box` (x1, y1, x2, y2) of an image, pixels of at least
// `threshold` being on: the counts of what the op paste_masks gives, without the image in memory.
Counts from_soft_mask(const float* mask,
                      int64_t side,
                      const float* box,
                      int64_t height,
                      int64_t width,
                      float threshold);

// Mask with one bit per pixel, [width, words_per_column(height)] as in paste_masks/packed_mask.h.
Counts from_packed(const int64_t* words, int64_t height, int64_t width);

}  // namespace mask_rle
