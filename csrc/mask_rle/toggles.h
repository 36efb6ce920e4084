// Positions at which filling a mask begins or ends.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "rle.h"

namespace mask_rle {

// Collects positions, counted down the columns of a mask [height, width]: add() them in any order,
// then finish() once. A position that is added an even number of times is none.
//
// They are a list, which is sorted at the end, until a bitmap of the mask would be smaller than the
// list: memory is at most a few bitmaps, however many positions are added.
class Toggles {
 public:
  Toggles(int64_t height, int64_t width) : height_(height), pixels_(height * width) {}

  // Row `height` is the first one of the next column.
  void add(int64_t column, int64_t row) {
    const int64_t position = column * height_ + row;
    if (!bitmap_.empty()) {
      flip(position);
    } else {
      list_.push_back(static_cast<uint32_t>(position));
      if (static_cast<int64_t>(list_.size()) > pixels_ / kListedBits) use_bitmap();
    }
  }

  // Adds that row in each column of [begin, end); it is 0 or `height`.
  void add_to_columns(int64_t begin, int64_t end, int64_t row) {
    begin += row == height_;
    end += row == height_;
    if (static_cast<int64_t>(range_ends_.size()) <= end) range_ends_.resize(end + 1);
    range_ends_[begin] ^= 1;
    range_ends_[end] ^= 1;
  }

  Counts finish() {
    bool in_range = false;
    for (size_t column = 0; column < range_ends_.size(); ++column) {
      in_range ^= range_ends_[column];
      if (in_range) add(column, 0);
    }
    RunWriter out;
    int64_t last = 0;
    bool on = false;
    const auto toggle = [&](int64_t position) {
      out.push(on, static_cast<uint32_t>(position - last));
      on = !on;
      last = position;
    };
    std::sort(list_.begin(), list_.end());
    for (uint32_t position : list_) toggle(position);
    for (size_t word = 0; word < bitmap_.size(); ++word) {
      for (uint64_t bits = bitmap_[word]; bits != 0; bits &= bits - 1) {
        toggle(kWordBits * word + std::countr_zero(bits));
      }
    }
    toggle(pixels_);
    return out.finish();
  }

 private:
  static constexpr int64_t kWordBits = 64;    // of the bitmap
  static constexpr int64_t kListedBits = 32;  // that a position takes in the list

  void flip(int64_t position) {
    bitmap_[position / kWordBits] ^= uint64_t{1} << position % kWordBits;
  }

  void use_bitmap() {
    bitmap_.resize(pixels_ / kWordBits + 1);  // the last position is `pixels_`
    for (uint32_t position : list_) flip(position);
    list_ = {};
  }

  int64_t height_, pixels_;
  std::vector<uint32_t> list_;
  std::vector<uint64_t> bitmap_;
  std::vector<uint8_t> range_ends_;  // by column: 1 where a range of columns begins or ends
};

}  // namespace mask_rle
