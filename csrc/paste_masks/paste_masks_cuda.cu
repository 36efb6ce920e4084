// Mask pasting on CUDA: all masks in one launch; every pixel of the output is written once, zeros
// included.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "../common/vector.cuh"
#include "arguments.h"
#include "mask_rows.cuh"

namespace maskrcnn {
namespace {

// A thread places the box once for 8 vectors of pixels. Estimate: enough that the placement costs
// little, and few enough that 100 masks of 800x1333 still make 13,200 blocks.
constexpr int kVectorsPerThread = 8;

// 16 bytes of output.
template <typename S>
constexpr int kVectorPixels = kVectorBytes / sizeof(S);

// Pixels of a block: each of its threads writes kVectorsPerThread vectors.
template <typename S>
constexpr int64_t kRun = int64_t(kThreads) * kVectorPixels<S> * kVectorsPerThread;

// Runs of one image, of which the first may begin up to one vector before the image.
template <typename S>
HOST_DEVICE int64_t runs_per_image(int64_t pixels) {
  return ceil_div(pixels + kVectorPixels<S> - 1, kRun<S>);
}

// S: dtype of masks and output, B: of boxes.
template <typename S, typename B>
struct PasteArguments {
  const S* masks;  // [D, M, M]
  const B* boxes;  // [D, 4]
  S* output;       // [D, H, W]
  int64_t count, side, height, width;
};

// Writes every pixel of every mask's image: the mask inside of its box, zero outside.
//
// Mapping: block -> a run of kRun pixels of one mask, row by row of the image; thread -> 16 bytes
// of output, kVectorsPerThread times, kThreads vectors apart, so that a warp writes 512 contiguous
// bytes. No shared memory: the masks, 3 KB each in float32, are read through L1.
//
// Vectors lie at multiples of 16 bytes of the output, whatever the size of the images: the runs of
// an image begin at the last such address that is not after its first pixel. A vector that two
// images share is written by both, pixel by pixel, and so is one in which a row of the box ends and
// the next begins. A run that lies in the image and outside of the box only stores zeros.
template <typename S, typename B>
__global__ void __launch_bounds__(kThreads) paste_all(const PasteArguments<S, B> a) {
  using T = accumulate_t<S>;
  constexpr int V = kVectorPixels<S>;
  constexpr int64_t kStep = int64_t(kThreads) * V;
  const int64_t pixels = a.height * a.width, runs = runs_per_image<S>(pixels);
  const int side = int(a.side), width = int(a.width);
  for (int64_t item = blockIdx.x; item < a.count * runs; item += gridDim.x) {
    const int64_t n = item / runs;
    const B* box = a.boxes + 4 * n;
    const PasteAxis<T> x_axis = paste_axis<T>(box[0], box[2], a.side, a.width);
    const PasteAxis<T> y_axis = paste_axis<T>(box[1], box[3], a.side, a.height);
    S* output = a.output + n * pixels;
    const int64_t before = reinterpret_cast<uintptr_t>(output) % kVectorBytes / sizeof(S);
    const int64_t begin = item % runs * kRun<S> - before, end = begin + kRun<S>;
    int64_t first = begin + int64_t(threadIdx.x) * V;
    // All pixels of the box lie in [touched, untouched).
    const bool covers = y_axis.begin < y_axis.end && x_axis.begin < x_axis.end;
    const int64_t touched = covers ? y_axis.begin * width + x_axis.begin : pixels;
    const int64_t untouched = covers ? (y_axis.end - 1) * width + x_axis.end : 0;
    if (begin >= 0 && end <= pixels && (end <= touched || begin >= untouched)) {
#pragma unroll
      for (int k = 0; k < kVectorsPerThread; ++k) {
        store_vector<S, V>(output + first + k * kStep, Vector<S, V>{});
      }
      continue;
    }
    const S* mask = a.masks + n * a.side * a.side;
    const int x_begin = covers ? int(x_axis.begin) : width, x_end = covers ? int(x_axis.end) : 0;
    const int step_y = int(kStep / width), step_x = int(kStep % width);
    int y = int(first / width), x = int(first % width);
    if (x < 0) {  // the image begins later
      x += width;
      --y;
    }
#pragma unroll 1
    for (; first < end && first < pixels; first += kStep) {
      const bool in_image = first >= 0 && first + V <= pixels, in_row = x <= width - V;
      const bool in_box = first + V > touched && first < untouched &&
                          ((x + V > x_begin && x < x_end) || x + V - width > x_begin);
      if (in_image && (in_row || !in_box)) {
        Vector<S, V> out = {};
        if (in_box) {
          const MaskRows<S, T> rows(mask, side, paste_sample(y_axis, y, a.side));
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (x + v < x_begin || x + v >= x_end) continue;
            out.values[v] = S(rows.at(side, paste_sample(x_axis, x + v, a.side)));
          }
        }
        store_vector<S, V>(output + first, out);
      } else {
#pragma unroll 1
        for (int64_t p = first < 0 ? 0 : first; p < first + V && p < pixels; ++p) {
          const int row = int(p / width), column = int(p % width);
          S pixel = S(T(0));
          if (row >= y_axis.begin && row < y_axis.end && column >= x_begin && column < x_end) {
            const MaskRows<S, T> rows(mask, side, paste_sample(y_axis, row, a.side));
            pixel = S(rows.at(side, paste_sample(x_axis, column, a.side)));
          }
          output[p] = pixel;
        }
      }
      y += step_y;
      x += step_x;
      if (x >= width) {
        x -= width;
        ++y;
      }
    }
  }
}

Tensor paste_masks(Tensor masks, Tensor boxes, int64_t height, int64_t width) {
  check_paste_arguments(masks, boxes, height, width);
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  const int64_t count = masks.size(0);
  Tensor output = torch::stable::new_empty(masks, {count, 1, height, width});
  const CudaLaunch launch(masks);
  dispatch_floating(masks.scalar_type(), "masks", [&](auto mask_tag) {
    using S = typename decltype(mask_tag)::type;
    dispatch_float_double(boxes.scalar_type(), "boxes", [&](auto box_tag) {
      using B = typename decltype(box_tag)::type;
      const PasteArguments<S, B> arguments{masks.const_data_ptr<S>(),
                                           boxes.const_data_ptr<B>(),
                                           output.mutable_data_ptr<S>(),
                                           count,
                                           masks.size(2),
                                           height,
                                           width};
      const int64_t pixels = height * width;
      launch("paste_all", paste_all<S, B>, pixels == 0 ? 0 : count * runs_per_image<S>(pixels),
             arguments);
    });
  });
  return output;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("paste_masks", TORCH_BOX(&maskrcnn::paste_masks));
}
