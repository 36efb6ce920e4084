#include <algorithm>
#include <stdexcept>

#include "rle.h"

namespace mask_rle {
namespace {

constexpr int kBits = 5;         // payload of one character
constexpr int64_t kSign = 0x10;  // highest payload bit: the sign, in the last character
constexpr int64_t kMore = 0x20;  // set while more characters of this count follow
constexpr char kFirst = '0';     // characters run from '0' (0) to 'o' (63)
constexpr int kMaxGroups = 7;    // 35 bits: the 33 of a signed difference of two uint32 fit

}  // namespace

std::string to_string(const Counts& counts) {
  std::string text;
  for (size_t i = 0; i < counts.size(); ++i) {
    int64_t value = counts[i];
    if (i > 2) value -= counts[i - 2];
    bool more = true;
    while (more) {
      int64_t group = value & (kMore - 1);
      value >>= kBits;
      more = value != ((group & kSign) ? -1 : 0);
      text.push_back(static_cast<char>(kFirst + (group | (more ? kMore : 0))));
    }
  }
  return text;
}

Counts from_string(std::string_view text) {
  Counts counts;
  for (size_t at = 0; at < text.size();) {
    int64_t value = 0;
    for (int shift = 0;; shift += kBits) {
      if (at == text.size()) throw std::invalid_argument("compressed RLE ends within a count");
      const int64_t group = static_cast<unsigned char>(text[at++]) - int64_t{kFirst};
      if (group < 0 || group >= 2 * kMore || shift == kBits * kMaxGroups) {
        throw std::invalid_argument("compressed RLE holds a bad character at " +
                                    std::to_string(at - 1));
      }
      value |= (group & (kMore - 1)) << shift;
      if (group & kMore) continue;
      if (group & kSign) value -= int64_t{1} << (shift + kBits);
      break;
    }
    if (counts.size() > 2) value += counts[counts.size() - 2];
    if (value < 0 || value > UINT32_MAX) {
      throw std::invalid_argument("compressed RLE holds the run length " + std::to_string(value));
    }
    counts.push_back(static_cast<uint32_t>(value));
  }
  return counts;
}

void check_size(const Counts& counts, int64_t height, int64_t width) {
  uint64_t pixels = 0;
  for (uint32_t count : counts) pixels += count;
  if (pixels != static_cast<uint64_t>(height * width)) {
    throw std::invalid_argument("RLE covers " + std::to_string(pixels) +
                                " pixels, but its size is " + std::to_string(height) + " x " +
                                std::to_string(width));
  }
}

uint64_t area(const Counts& counts) {
  uint64_t pixels = 0;
  for (size_t i = 1; i < counts.size(); i += 2) pixels += counts[i];
  return pixels;
}

std::array<double, 4> bounding_box(const Counts& counts, int64_t height) {
  int64_t left = INT64_MAX, top = INT64_MAX, right = -1, bottom = -1;  // inclusive
  int64_t begin = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t end = begin + counts[i];
    if (i % 2 == 1 && end > begin) {
      const int64_t first_column = begin / height, last_column = (end - 1) / height;
      const bool wraps = last_column > first_column;  // then it touches bottom and top
      left = std::min(left, first_column);
      right = std::max(right, last_column);
      top = std::min(top, wraps ? 0 : begin % height);
      bottom = std::max(bottom, wraps ? height - 1 : (end - 1) % height);
    }
    begin = end;
  }
  if (right < 0) return {0, 0, 0, 0};
  return {double(left), double(top), double(right - left + 1), double(bottom - top + 1)};
}

Counts merge(const Counts& a, const Counts& b, bool intersect) {
  RunWriter out;
  size_t i = 0, j = 0;
  uint32_t left_a = a.empty() ? 0 : a[0], left_b = b.empty() ? 0 : b[0];
  while (i < a.size() && j < b.size()) {
    const uint32_t step = std::min(left_a, left_b);
    const bool on_a = i % 2, on_b = j % 2;
    out.push(intersect ? on_a && on_b : on_a || on_b, step);
    left_a -= step;
    left_b -= step;
    if (left_a == 0 && ++i < a.size()) left_a = a[i];
    if (left_b == 0 && ++j < b.size()) left_b = b[j];
  }
  return out.finish();
}

}  // namespace mask_rle
