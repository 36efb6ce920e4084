// Mask pasting to bits on CUDA: all masks in one launch; every word of the output is written once,
// zeros included.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/block_count.cuh"
#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "arguments.h"
#include "packed_mask.h"
#include "paste_pixel.cuh"

namespace maskrcnn {
namespace {

// A warp places the box once for 4 columns. With 8 warps a block takes 32 columns of one mask.
constexpr int kColumnsPerWarp = 4;
constexpr int64_t kColumnsPerBlock = kWarps * kColumnsPerWarp;

// T: dtype of masks, B: of boxes.
template <typename T, typename B>
struct PackedArguments {
  const T* masks;    // [N, M, M]
  const B* boxes;    // [N, 4]
  uint64_t* output;  // [N, W, words]
  int64_t count, side, height, width;
  T threshold;
};

// Mapping: block -> kColumnsPerBlock columns of one mask; warp -> one column at a time, 32 words of
// it at a time. Within a column, lane -> one pixel when pixels are tested: a ballot makes 32 pixels
// half a word, bit i being pixel i. Lane -> one word when words are stored: lane i keeps word i in
// `own`, and the warp stores 32 words, 256 contiguous bytes. No shared memory. Words beside the box
// are stored as zeros without a test.
template <typename T, typename B>
__global__ void __launch_bounds__(kThreads) paste_packed(const PackedArguments<T, B> a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t words = words_per_column(a.height);
  const int64_t runs = ceil_div(a.width, kColumnsPerBlock);
  for (int64_t item = blockIdx.x; item < a.count * runs; item += gridDim.x) {
    const int64_t n = item / runs;
    const B* box = a.boxes + 4 * n;
    const PasteAxis<T> x_axis = paste_axis<T>(box[0], box[2], a.side, a.width);
    const PasteAxis<T> y_axis = paste_axis<T>(box[1], box[3], a.side, a.height);
    const T* mask = a.masks + n * a.side * a.side;
    for (int k = 0; k < kColumnsPerWarp; ++k) {
      const int64_t column = item % runs * kColumnsPerBlock + k * kWarps + warp;
      if (column >= a.width) break;  // the whole warp
      uint64_t* to = a.output + (n * a.width + column) * words;
      const bool covered = column >= x_axis.begin && column < x_axis.end;
      const PasteSample<T> x = covered ? paste_sample(x_axis, column, a.side) : PasteSample<T>{};
      const int64_t top = y_axis.begin / kWordPixels;
      const int64_t bottom = covered ? words_per_column(y_axis.end) : 0;
      for (int64_t first = 0; first < words; first += 32) {
        const int64_t end = bottom < first + 32 ? bottom : first + 32;
        uint64_t own = 0;
        for (int64_t w = top > first ? top : first; w < end; ++w) {
          uint64_t word = 0;
          for (int half = 0; half < 2; ++half) {
            const int64_t y = w * kWordPixels + half * 32 + lane;
            const bool on =
                y >= y_axis.begin && y < y_axis.end &&
                paste_pixel(mask, a.side, paste_sample(y_axis, y, a.side), x) >= a.threshold;
            word |= uint64_t(__ballot_sync(~0u, on)) << (half * 32);
          }
          if (w == first + lane) own = word;
        }
        if (first + lane < words) to[first + lane] = own;
      }
    }
  }
}

Tensor paste_masks_packed(
    Tensor masks, Tensor boxes, int64_t height, int64_t width, double threshold) {
  check_paste_arguments(masks, boxes, height, width);
  check_threshold(threshold);
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  const int64_t count = masks.size(0), words = words_per_column(height);
  Tensor output = torch::stable::new_empty(masks, {count, width, words}, ScalarType::Long);
  const CudaLaunch launch(masks);
  dispatch_float_double(masks.scalar_type(), "masks", [&](auto mask_tag) {
    using T = typename decltype(mask_tag)::type;
    dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto box_tag) {
      using B = typename decltype(box_tag)::type;
      const PackedArguments<T, B> arguments{
          masks.const_data_ptr<T>(),
          boxes.const_data_ptr<B>(),
          reinterpret_cast<uint64_t*>(output.mutable_data_ptr<int64_t>()),
          count,
          masks.size(2),
          height,
          width,
          T(threshold)};
      launch("paste_packed", paste_packed<T, B>, count * ceil_div(width, kColumnsPerBlock),
             arguments);
    });
  });
  return output;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("paste_masks_packed", TORCH_BOX(&maskrcnn::paste_masks_packed));
}
