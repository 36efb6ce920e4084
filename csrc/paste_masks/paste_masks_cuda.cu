// Mask pasting on CUDA: all masks in one launch; every pixel of the output is written once, zeros
// included.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "../common/vector.cuh"
#include "arguments.h"
#include "paste_pixel.cuh"

namespace maskrcnn {
namespace {

// A thread places the box once for 8 vectors of pixels. Estimate: enough that the placement costs
// little, and few enough that 100 masks of 800x1333 still make 13,100 blocks.
constexpr int kVectorsPerThread = 8;

// S: dtype of masks and output, B: of boxes.
template <typename S, typename B>
struct PasteArguments {
  const S* masks;  // [N, M, M]
  const B* boxes;  // [N, 4]
  S* output;       // [N, H, W]
  int64_t count, side, height, width;
};

// Whether one of V pixels from (y, x) on, row by row of the image, may lie in the box.
template <int V, typename T>
__device__ bool may_touch(
    const PasteAxis<T>& y_axis, const PasteAxis<T>& x_axis, int64_t y, int64_t x, int64_t width) {
  if (x + V > width) return true;  // they end in the next row
  return y >= y_axis.begin && y < y_axis.end && x + V > x_axis.begin && x < x_axis.end;
}

// Mapping: block -> a run of kThreads * V * kVectorsPerThread pixels of one mask, row by row of the
// image; thread -> V neighbouring pixels, 16 bytes of output, kVectorsPerThread times, kThreads * V
// pixels apart, so that a warp writes 512 contiguous bytes. A thread divides by the width once, and
// then adds the rows and columns of a step. Outside of the box it stores zeros and does nothing
// else. No shared memory: the masks, 3 KB each in float32, are read through L1.
//
// V > 1 must divide height * width, so that each image begins at a multiple of 16 bytes.
template <typename S, typename B, int V>
__global__ void __launch_bounds__(kThreads) paste_all(const PasteArguments<S, B> a) {
  using T = accumulate_t<S>;
  const int64_t pixels = a.height * a.width;
  constexpr int64_t kStep = int64_t(kThreads) * V, kRun = kStep * kVectorsPerThread;
  const int64_t runs = ceil_div(pixels, kRun);
  for (int64_t item = blockIdx.x; item < a.count * runs; item += gridDim.x) {
    const int64_t n = item / runs;
    const B* box = a.boxes + 4 * n;
    const PasteAxis<T> x_axis = paste_axis<T>(box[0], box[2], a.side, a.width);
    const PasteAxis<T> y_axis = paste_axis<T>(box[1], box[3], a.side, a.height);
    const S* mask = a.masks + n * a.side * a.side;
    int64_t first = item % runs * kRun + int64_t(threadIdx.x) * V;
    const int64_t end = first + kRun < pixels ? first + kRun : pixels;
    int64_t y = first / a.width, x = first % a.width;
    const int64_t step_y = kStep / a.width, step_x = kStep % a.width;
#pragma unroll 1
    for (; first < end; first += kStep) {
      Vector<S, V> out = {};
      if (may_touch<V>(y_axis, x_axis, y, x, a.width)) {
        int64_t row = y, column = x;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (row >= y_axis.begin && row < y_axis.end && column >= x_axis.begin &&
              column < x_axis.end) {
            out.values[v] = S(paste_pixel(mask, a.side, paste_sample(y_axis, row, a.side),
                                          paste_sample(x_axis, column, a.side)));
          }
          if (++column == a.width) {
            column = 0;
            ++row;
          }
        }
      }
      store_vector<S, V>(a.output + n * pixels + first, out);
      y += step_y;
      x += step_x;
      if (x >= a.width) {
        x -= a.width;
        ++y;
      }
    }
  }
}

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width) {
  check_paste_arguments(masks, boxes, height, width);
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  const int64_t count = masks.size(0), pixels = height * width;
  Tensor output = torch::stable::new_empty(masks, {count, 1, height, width});
  const CudaLaunch launch(masks);
  dispatch_floating(masks.scalar_type(), "masks", [&](auto mask_tag) {
    using S = typename decltype(mask_tag)::type;
    dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto box_tag) {
      using B = typename decltype(box_tag)::type;
      constexpr int kVector = kVectorBytes / sizeof(S);
      const PasteArguments<S, B> arguments{masks.const_data_ptr<S>(),
                                           boxes.const_data_ptr<B>(),
                                           output.mutable_data_ptr<S>(),
                                           count,
                                           masks.size(2),
                                           height,
                                           width};
      const bool vectors = pixels % kVector == 0 && is_aligned(arguments.output, kVectorBytes);
      const int64_t run = int64_t(kThreads) * kVectorsPerThread * (vectors ? kVector : 1);
      launch("paste_all", vectors ? paste_all<S, B, kVector> : paste_all<S, B, 1>,
             count * ceil_div(pixels, run), arguments);
    });
  });
  return output;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("paste_masks", TORCH_BOX(&maskrcnn::paste_masks));
}
