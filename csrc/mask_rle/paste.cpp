// The arithmetic, rows of the mask first and then columns, is that of paste_masks_cpu.cpp,
// operation by operation, so that both agree about every pixel.
#include <algorithm>
#include <cstring>

#include "../common/cpu_isa.h"
#include "../paste_masks/paste_masks.h"
#include "rle.h"

namespace mask_rle {
namespace {

using maskrcnn::paste_sample;
using maskrcnn::PasteAxis;
using maskrcnn::PasteSample;

// The mask stretched to the box's rows: [side + 3, rows], column by column of the mask with a
// border of zeros, so that an image column reads two neighbours of it.
std::vector<float> stretch_rows(const float* mask, int64_t side, const PasteAxis<float>& axis) {
  const int64_t rows = axis.end - axis.begin;
  std::vector<float> stretched((side + 3) * rows, 0.f);
  for (int64_t i = 0; i < rows; ++i) {
    const PasteSample<float> sample = paste_sample(axis, axis.begin + i, side);
    const auto add = [&](int64_t mask_y, float weight) {
      if (mask_y < 0 || mask_y >= side) return;
      for (int64_t x = 0; x < side; ++x) {
        stretched[(x + 1) * rows + i] += weight * mask[mask_y * side + x];
      }
    };
    add(sample.low, sample.w_low);
    add(sample.low + 1, sample.w_high);
  }
  return stretched;
}

ALWAYS_INLINE void threshold_column(const float* low,
                                    const float* high,
                                    float w_low,
                                    float w_high,
                                    int64_t rows,
                                    float threshold,
                                    uint8_t* __restrict on) {
  for (int64_t i = 0; i < rows; ++i) on[i] = w_low * low[i] + w_high * high[i] >= threshold;
}

void push_column(const uint8_t* on, int64_t rows, RunWriter& out) {
  for (int64_t i = 0; i < rows;) {
    const void* change = std::memchr(on + i, !on[i], rows - i);
    const int64_t end = change ? static_cast<const uint8_t*>(change) - on : rows;
    out.push(on[i], end - i);
    i = end;
  }
}

}  // namespace

Counts from_soft_mask(const float* mask,
                      int64_t side,
                      const float* box,
                      int64_t height,
                      int64_t width,
                      float threshold) {
  const auto x = maskrcnn::paste_axis<float>(box[0], box[2], side, width);
  const auto y = maskrcnn::paste_axis<float>(box[1], box[3], side, height);
  const int64_t rows = y.end - y.begin;
  RunWriter out;
  if (rows <= 0 || x.end <= x.begin) {
    out.push(false, height * width);
    return out.finish();
  }
  const std::vector<float> stretched = stretch_rows(mask, side, y);
  std::vector<uint8_t> on(rows);
  out.push(false, x.begin * height);
  for (int64_t column = x.begin; column < x.end; ++column) {
    const PasteSample<float> sample = paste_sample(x, column, side);
    const float* low = stretched.data() + (sample.low + 1) * rows;
    maskrcnn::with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      threshold_column(low, low + rows, sample.w_low, sample.w_high, rows, threshold, on.data());
    });
    out.push(false, y.begin);
    push_column(on.data(), rows, out);
    out.push(false, height - y.end);
  }
  out.push(false, (width - x.end) * height);
  return out.finish();
}

}  // namespace mask_rle
