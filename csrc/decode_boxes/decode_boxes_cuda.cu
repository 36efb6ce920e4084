// Boxes from their deltas, clipped to the image, in one launch: in PyTorch it takes 38.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "arguments.h"
#include "decode_boxes.h"

namespace maskrcnn {
namespace {

template <typename T>
struct DecodeArguments {
  const T* deltas;                   // [N, A, 4]
  const int64_t* delta_indices;      // [N, K]
  const T* references;               // [N, P, 4], or [1, P, 4] for all images
  const int64_t* reference_indices;  // [N, K]
  const int64_t* image_sizes;        // [N, 2], (height, width)
  int64_t images, boxes;             // N, K
  int64_t delta_rows;                // A
  int64_t reference_rows;            // P
  bool shares_references;
  BoxCoder<T> coder;
  T min_size;
  T* decoded;      // [N, K, 4]
  bool* is_large;  // [N, K]
};

// Decodes the box of each candidate, clips it to its image, and tests its sides.
//
// Mapping: thread -> one box; block -> kThreads of them, of any image. No shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads) decode(const DecodeArguments<T> a) {
  const int64_t count = a.images * a.boxes;
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < count;
       first += int64_t(gridDim.x) * kThreads) {
    const int64_t i = first + threadIdx.x;
    if (i >= count) return;
    const int64_t n = i / a.boxes;
    const int64_t* size = a.image_sizes + 2 * n;
    const int64_t d = a.delta_indices[i], r = a.reference_indices[i];
    Box<T> box{};  // zero where an index is out of range
    if (d >= 0 && d < a.delta_rows && r >= 0 && r < a.reference_rows) {
      const T* deltas = a.deltas + 4 * (n * a.delta_rows + d);
      const int64_t reference = (a.shares_references ? 0 : n * a.reference_rows) + r;
      box = decode_box(deltas, std::exp(log_scale(deltas[2], a.coder.weight_w, a.coder.clip)),
                       std::exp(log_scale(deltas[3], a.coder.weight_h, a.coder.clip)),
                       a.references + 4 * reference, a.coder, T(size[0]), T(size[1]));
    }
    T* to = a.decoded + 4 * i;
    to[0] = box.x1;
    to[1] = box.y1;
    to[2] = box.x2;
    to[3] = box.y2;
    a.is_large[i] = has_min_size(box, a.min_size);
  }
}

std::tuple<Tensor, Tensor> decode_boxes(Tensor deltas,
                                        Tensor delta_indices,
                                        Tensor references,
                                        Tensor reference_indices,
                                        Tensor image_sizes,
                                        std::vector<double> weights,
                                        double bbox_xform_clip,
                                        double min_size) {
  check_decode_boxes_arguments(deltas, delta_indices, references, reference_indices, image_sizes,
                               weights.size());
  deltas = torch::stable::contiguous(deltas);
  delta_indices = torch::stable::contiguous(delta_indices);
  references = torch::stable::contiguous(references);
  reference_indices = torch::stable::contiguous(reference_indices);
  image_sizes = torch::stable::contiguous(image_sizes);
  if (checked_mode()) {
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    check_row_indices(torch::stable::to(delta_indices, cpu), deltas.size(1), "delta_indices");
    check_row_indices(torch::stable::to(reference_indices, cpu), references.size(1),
                      "reference_indices");
  }
  const CudaLaunch launch(deltas);
  const int64_t images = deltas.size(0), boxes = delta_indices.size(1);
  Tensor decoded = torch::stable::new_empty(deltas, {images, boxes, 4});
  Tensor is_large = torch::stable::new_empty(deltas, {images, boxes}, ScalarType::Bool);
  dispatch_float_double(deltas.scalar_type(), "deltas", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const DecodeArguments<T> arguments{
        .deltas = deltas.const_data_ptr<T>(),
        .delta_indices = delta_indices.const_data_ptr<int64_t>(),
        .references = references.const_data_ptr<T>(),
        .reference_indices = reference_indices.const_data_ptr<int64_t>(),
        .image_sizes = image_sizes.const_data_ptr<int64_t>(),
        .images = images,
        .boxes = boxes,
        .delta_rows = deltas.size(1),
        .reference_rows = references.size(1),
        .shares_references = references.size(0) == 1,
        .coder = {T(weights[0]), T(weights[1]), T(weights[2]), T(weights[3]), T(bbox_xform_clip)},
        .min_size = T(min_size),
        .decoded = decoded.mutable_data_ptr<T>(),
        .is_large = is_large.mutable_data_ptr<bool>(),
    };
    launch("decode_boxes", decode<T>, ceil_div<int64_t>(images * boxes, kThreads), arguments);
  });
  return {decoded, is_large};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("decode_boxes", TORCH_BOX(&maskrcnn::decode_boxes));
}
