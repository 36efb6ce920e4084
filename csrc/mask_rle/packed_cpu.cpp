#include <algorithm>
#include <bit>

#include "../paste_masks/packed_mask.h"
#include "rle.h"

namespace mask_rle {

using maskrcnn::kWordPixels;

// A run ends where a pixel differs from the one before it; off comes before the first.
Counts from_packed(const int64_t* words, int64_t height, int64_t width) {
  const int64_t in_column = maskrcnn::words_per_column(height);
  Counts counts;
  uint32_t begin = 0;   // of the run
  uint32_t at = 0;      // first pixel of the word
  uint64_t before = 0;  // the pixel before it
  for (int64_t column = 0; column < width; ++column, words += in_column) {
    uint64_t any = before;
    for (int64_t w = 0; w < in_column; ++w) any |= static_cast<uint64_t>(words[w]);
    if (any == 0) {  // most columns lie beside the box
      at += height;
      continue;
    }
    for (int64_t w = 0; w < in_column; ++w) {
      const int64_t pixels = std::min(kWordPixels, height - w * kWordPixels);
      const uint64_t word = static_cast<uint64_t>(words[w]);
      uint64_t changes = (word ^ (word << 1 | before)) & (~uint64_t{0} >> (kWordPixels - pixels));
      for (; changes != 0; changes &= changes - 1) {
        const uint32_t change = at + std::countr_zero(changes);
        counts.push_back(change - begin);
        begin = change;
      }
      before = word >> (pixels - 1) & 1;
      at += pixels;
    }
  }
  counts.push_back(at - begin);
  return counts;
}

}  // namespace mask_rle
