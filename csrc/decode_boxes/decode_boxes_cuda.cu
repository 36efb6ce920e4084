// Boxes from their deltas, clipped to the image, in one launch: in PyTorch it takes 36.
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
  const T* deltas;             // [N, K, 4]
  const T* references;         // [N, K, 4]
  const int64_t* image_sizes;  // [N, 2], (height, width)
  int64_t images, boxes;       // N, K
  BoxCoder<T> coder;
  T min_size;
  T* decoded;      // [N, K, 4]
  bool* is_large;  // [N, K]
};

// Mapping: thread -> one box; block -> kThreads of them, of any image.
template <typename T>
__global__ void __launch_bounds__(kThreads) decode(const DecodeArguments<T> a) {
  const int64_t count = a.images * a.boxes;
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < count;
       first += int64_t(gridDim.x) * kThreads) {
    const int64_t i = first + threadIdx.x;
    if (i >= count) return;
    const int64_t* size = a.image_sizes + 2 * (i / a.boxes);
    const T* deltas = a.deltas + 4 * i;
    const Box<T> box =
        decode_box(deltas, std::exp(log_scale(deltas[2], a.coder.weight_w, a.coder.clip)),
                   std::exp(log_scale(deltas[3], a.coder.weight_h, a.coder.clip)),
                   a.references + 4 * i, a.coder, T(size[0]), T(size[1]));
    T* to = a.decoded + 4 * i;
    to[0] = box.x1;
    to[1] = box.y1;
    to[2] = box.x2;
    to[3] = box.y2;
    a.is_large[i] = has_min_size(box, a.min_size);
  }
}

std::tuple<Tensor, Tensor> decode_boxes(Tensor deltas,
                                        Tensor references,
                                        Tensor image_sizes,
                                        std::vector<double> weights,
                                        double bbox_xform_clip,
                                        double min_size) {
  check_decode_boxes_arguments(deltas, references, image_sizes, weights.size());
  deltas = torch::stable::contiguous(deltas);
  references = torch::stable::contiguous(references);
  image_sizes = torch::stable::contiguous(image_sizes);
  const CudaLaunch launch(deltas);
  const int64_t images = deltas.size(0), boxes = deltas.size(1);
  Tensor decoded = torch::stable::new_empty(deltas, {images, boxes, 4});
  Tensor is_large = torch::stable::new_empty(deltas, {images, boxes}, ScalarType::Bool);
  dispatch_float_double(deltas.scalar_type(), "deltas", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const DecodeArguments<T> arguments{
        .deltas = deltas.const_data_ptr<T>(),
        .references = references.const_data_ptr<T>(),
        .image_sizes = image_sizes.const_data_ptr<int64_t>(),
        .images = images,
        .boxes = boxes,
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
