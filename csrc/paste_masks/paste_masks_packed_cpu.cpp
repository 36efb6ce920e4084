// Mask pasting to bits on the CPU. A task is one mask. Only the words under its box are written;
// the rest of the output is memory that is never touched (lazy_zeros_cpu).
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../common/dispatch.h"
#include "../common/host_memory.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "packed_mask.h"
#include "paste_columns.h"

namespace maskrcnn {
namespace {

// Bit i of the result is on[i]: each of eight bytes, 0 or 1, moves to a bit of the highest byte.
uint64_t pack_byte(const uint8_t* on) {
  uint64_t bytes = 0;
  for (int i = 0; i < 8; ++i) bytes |= uint64_t(on[i]) << (8 * i);
  return bytes * 0x0102040810204080u >> 56;
}

uint64_t pack_word(const uint8_t* on) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= pack_byte(on + 8 * i) << (8 * i);
  return word;
}

template <typename T, typename B>
void paste_packed(const Tensor& masks,
                  const Tensor& boxes,
                  int64_t height,
                  int64_t width,
                  T threshold,
                  int64_t* output) {
  const T* mask_data = masks.const_data_ptr<T>();
  const B* box_data = boxes.const_data_ptr<B>();
  const int64_t side = masks.size(2), words = words_per_column(height);
  parallel_tasks(masks.size(0), [&](int64_t n) {
    const B* box = box_data + 4 * n;
    const PasteAxis<T> x = paste_axis<T>(box[0], box[2], side, width);
    const PasteAxis<T> y = paste_axis<T>(box[1], box[3], side, height);
    if (y.begin >= y.end) return;
    std::vector<uint8_t> on(words * kWordPixels);  // of a column
    threshold_columns(mask_data + n * side * side, side, x, y, threshold, on.data() + y.begin,
                      [&](int64_t column) {
                        int64_t* to = output + (n * width + column) * words;
                        for (int64_t w = y.begin / kWordPixels; w < words_per_column(y.end); ++w) {
                          to[w] = int64_t(pack_word(on.data() + w * kWordPixels));
                        }
                      });
  });
}

Tensor paste_masks_packed(
    Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_paste_arguments(masks, boxes, height, width);
  check_threshold(threshold);
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  Tensor output = lazy_zeros_cpu({masks.size(0), 1, width, words_per_column(height)},
                                 ScalarType::Long, sizeof(int64_t), /*channels_last=*/false);
  dispatch_float_double(masks.scalar_type(), "masks", [&](auto mask_tag) {
    using T = typename decltype(mask_tag)::type;
    dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto box_tag) {
      using B = typename decltype(box_tag)::type;
      paste_packed<T, B>(masks, boxes, height, width, T(threshold),
                         output.mutable_data_ptr<int64_t>());
    });
  });
  return torch::stable::squeeze(output, 1);
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("paste_masks_packed", TORCH_BOX(&maskrcnn::paste_masks_packed));
}
