#include <cstring>

#include "../paste_masks/paste_columns.h"
#include "rle.h"

namespace mask_rle {
namespace {

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
  std::vector<uint8_t> on(rows);
  out.push(false, x.begin * height);
  maskrcnn::threshold_columns(mask, side, x, y, threshold, on.data(), [&](int64_t) {
    out.push(false, y.begin);
    push_column(on.data(), rows, out);
    out.push(false, height - y.end);
  });
  out.push(false, (width - x.end) * height);
  return out.finish();
}

}  // namespace mask_rle
