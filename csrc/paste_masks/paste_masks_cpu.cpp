// Mask pasting on the CPU. A task is one mask. Only the pixels under its box are written; the rest
// of the output is memory that is never touched (lazy_zeros_cpu). For each row of the image two
// rows of the mask are interpolated, and the result is then interpolated at the position of each
// column.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/host_memory.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "paste_masks.h"

namespace maskrcnn {
namespace {

// For each image column the two pixels of a mask row, `low` and `low + 1`, counted with the border.
template <typename T>
struct Columns {
  std::vector<int32_t> low;
  std::vector<T> w_low, w_high;

  Columns(const PasteAxis<T>& axis, int64_t mask_side) {
    for (int64_t x = axis.begin; x < axis.end; ++x) {
      const PasteSample<T> sample = paste_sample(axis, x, mask_side);
      low.push_back(int32_t(sample.low + 1));
      w_low.push_back(sample.w_low);
      w_high.push_back(sample.w_high);
    }
  }
};

// row: an interpolated mask row with its border of zeros, [M + 3].
template <typename S, typename T>
ALWAYS_INLINE void blend_rows(const S* mask, int64_t side, const PasteSample<T>& y, T* row) {
  const auto add = [&](int64_t mask_y, T weight) ALWAYS_INLINE_LAMBDA {
    if (mask_y < 0 || mask_y >= side) return;
    const S* from = mask + mask_y * side;
    for (int64_t x = 0; x < side; ++x) row[x + 1] += weight * T(from[x]);
  };
  for (int64_t x = 0; x < side + 3; ++x) row[x] = T(0);
  add(y.low, y.w_low);
  add(y.low + 1, y.w_high);
}

template <typename S, typename T>
ALWAYS_INLINE void read_columns(const T* row, const Columns<T>& columns, S* __restrict out) {
  const int32_t* low = columns.low.data();
  const T* w_low = columns.w_low.data();
  const T* w_high = columns.w_high.data();
  const int64_t count = columns.low.size();
  for (int64_t i = 0; i < count; ++i) {
    out[i] = S(w_low[i] * row[low[i]] + w_high[i] * row[low[i] + 1]);
  }
}

template <typename S, typename B>
void paste(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width, S* output) {
  using T = accumulate_t<S>;
  const S* mask_data = masks.const_data_ptr<S>();
  const B* box_data = boxes.const_data_ptr<B>();
  const int64_t side = masks.size(2);
  parallel_tasks(masks.size(0), [&](int64_t n) {
    const B* box = box_data + 4 * n;
    const PasteAxis<T> x = paste_axis<T>(box[0], box[2], side, width);
    const PasteAxis<T> y = paste_axis<T>(box[1], box[3], side, height);
    if (y.begin >= y.end || x.begin >= x.end) return;
    const Columns<T> columns(x, side);
    std::vector<T> row(side + 3);
    S* image = output + n * height * width;
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      for (int64_t i = y.begin; i < y.end; ++i) {
        blend_rows(mask_data + n * side * side, side, paste_sample(y, i, side), row.data());
        read_columns(row.data(), columns, image + i * width + x.begin);
      }
    });
  });
}

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width) {
  check_paste_arguments(masks, boxes, height, width);
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  Tensor output = lazy_zeros_cpu({masks.size(0), 1, height, width}, masks.scalar_type(),
                                 masks.element_size(), /*channels_last=*/false);
  dispatch_floating(masks.scalar_type(), "masks", [&](auto mask_tag) {
    using S = typename decltype(mask_tag)::type;
    dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto box_tag) {
      using B = typename decltype(box_tag)::type;
      paste<S, B>(masks, boxes, height, width, output.mutable_data_ptr<S>());
    });
  });
  return output;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("paste_masks", TORCH_BOX(&maskrcnn::paste_masks));
}
