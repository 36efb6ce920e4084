// Mask pasting to bits on CUDA: all masks in one launch; every word of the output is written once,
// zeros included.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "arguments.h"
#include "mask_rows.cuh"
#include "packed_mask.h"

namespace maskrcnn {
namespace {

// A block of 8 warps takes 128 columns of one mask. Estimate: enough that stretching the rows of
// the mask, some 2,000 values per 64 rows of the image, costs little beside testing 128 x 64
// pixels.
constexpr int kColumnsPerWarp = 16;
constexpr int kColumnsPerBlock = kWarps * kColumnsPerWarp;

// Mask columns that are stretched at a time: a mask of 28 x 28, with its border, at once.
constexpr int kMaskColumns = 32;

// T: dtype of masks, B: of boxes.
template <typename T, typename B>
struct PackedArguments {
  const T* masks;    // [D, M, M]
  const B* boxes;    // [D, 4]
  uint64_t* output;  // [D, W, words]
  int64_t count, side, height, width;
  T threshold;
};

// Writes every word of every mask's image, as packed_mask.h describes.
//
// Mapping: block -> kColumnsPerBlock columns of one mask; warp -> every kWarps-th of them. First
// the block stores zeros, 8 bytes per thread. If the box covers some of its columns, it goes on
// with one word of each column, 64 rows of the image, after the other:
// - Thread -> one row, and every (kThreads / 64)-th column of the mask: it interpolates the mask at
//   the row, once for all columns of the image.
// - Warp -> one column of the image at a time, lane -> two rows: a ballot makes 32 pixels half a
//   word, bit i being pixel i. Lane k keeps the position and the word of the warp's k-th column.
// Masks of more than kMaskColumns - 1 columns are stretched part by part; an image column waits for
// the part that it lies in.
// Shared memory: stretched, one value per mask column and row, 8.3 KiB (float64: 16.5 KiB). 3
// blocks per multiprocessor: else the compiler aims at 6, and spills.
template <typename T, typename B>
__global__ void __launch_bounds__(kThreads, 3) paste_packed(const PackedArguments<T, B> a) {
  __shared__ T stretched[kMaskColumns + 1][kWordPixels];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, side = int(a.side);
  const int64_t words = words_per_column(a.height);
  const int64_t runs = ceil_div<int64_t>(a.width, kColumnsPerBlock);
  for (int64_t item = blockIdx.x; item < a.count * runs; item += gridDim.x) {
    const int64_t n = item / runs, first_column = item % runs * kColumnsPerBlock;
    const int64_t end_column =
        first_column + kColumnsPerBlock < a.width ? first_column + kColumnsPerBlock : a.width;
    uint64_t* image = a.output + n * a.width * words;
    for (int64_t i = first_column * words + threadIdx.x; i < end_column * words; i += kThreads) {
      image[i] = 0;
    }
    const B* box = a.boxes + 4 * n;
    const PasteAxis<T> x_axis = paste_axis<T>(box[0], box[2], a.side, a.width);
    const PasteAxis<T> y_axis = paste_axis<T>(box[1], box[3], a.side, a.height);
    const int64_t begin = x_axis.begin > first_column ? x_axis.begin : first_column;
    const int64_t end = x_axis.end < end_column ? x_axis.end : end_column;
    if (begin >= end || y_axis.begin >= y_axis.end) continue;  // the whole block
    const int mask_begin = paste_sample(x_axis, begin, a.side).low;
    const int mask_end = paste_sample(x_axis, end - 1, a.side).low + 1;

    const int64_t column = first_column + lane * kWarps + warp;
    const bool covered = lane < kColumnsPerWarp && column >= begin && column < end;
    const PasteSample<T> x =
        covered ? paste_sample(x_axis, column, a.side) : PasteSample<T>{-2, T(0), T(0)};
    for (int64_t w = y_axis.begin / kWordPixels; w < words_per_column(y_axis.end); ++w) {
      const int row = threadIdx.x % kWordPixels;
      const int64_t y = w * kWordPixels + row;
      const bool in_box = y >= y_axis.begin && y < y_axis.end;
      const PasteSample<T> y_sample =
          in_box ? paste_sample(y_axis, y, a.side) : PasteSample<T>{side, T(0), T(0)};
      const MaskRows<T, T> rows(a.masks + n * a.side * a.side, side, y_sample);
      uint64_t own = 0;
      for (int first = mask_begin; first < mask_end; first += kMaskColumns) {
        const int last = mask_end - first < kMaskColumns ? mask_end - first : kMaskColumns;
        __syncthreads();  // the zeros are stored, the last part is read
        for (int i = threadIdx.x / kWordPixels; i <= last; i += kThreads / kWordPixels) {
          stretched[i][row] = rows.column(side, first + i);
        }
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < kColumnsPerWarp; ++k) {
          const int i = __shfl_sync(~0u, x.low, k) - first;
          const T w_low = __shfl_sync(~0u, x.w_low, k), w_high = __shfl_sync(~0u, x.w_high, k);
          if (i < 0 || i >= kMaskColumns) continue;  // the whole warp
          const auto on = [&](int row) {
            return w_low * stretched[i][row] + w_high * stretched[i + 1][row] >= a.threshold;
          };
          const unsigned upper = __ballot_sync(~0u, on(lane));
          const uint64_t word = upper | uint64_t(__ballot_sync(~0u, on(lane + 32))) << 32;
          if (lane == k) own = word;
        }
      }
      if (covered) image[column * words + w] = own;
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
      launch("paste_packed", paste_packed<T, B>, count * ceil_div<int64_t>(width, kColumnsPerBlock),
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
