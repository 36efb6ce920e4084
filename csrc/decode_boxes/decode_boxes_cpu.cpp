// Boxes from their deltas on the CPU: rows are gathered, then decoded in two vectorised passes. In
// PyTorch it takes 38 operators.
//
// Between the passes PyTorch computes the exponentials, so that boxes have the bits of its
// operators: its exp depends on the instruction set and on its version.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "arguments.h"
#include "decode_boxes.h"

namespace maskrcnn {
namespace {

constexpr int64_t kBoxesPerThread = 1 << 14;  // at least: tens of microseconds of work (estimate)

void exponentiate(Tensor& values) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(values)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::exp_", "", stack.data(), TORCH_ABI_VERSION));
  values = torch::stable::detail::to<Tensor>(stack[0]);
}

// Calls f(i) for each i in [0, count), compiled for the best instruction set.
template <typename F>
void for_each_box(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, kBoxesPerThread, [&](int64_t begin, int64_t end) {
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      for (int64_t i = begin; i < end; ++i) f(i);
    });
  });
}

// The rows [count, 4] of a table [*, 4] at `indices`. They may lie anywhere in it, so those of the
// next indices are fetched into the cache meanwhile.
template <typename T>
void gather_rows(const T* table, const int64_t* indices, int64_t count, T* rows) {
  constexpr int64_t kAhead = 16;
  for (int64_t i = 0; i < count; ++i) {
    __builtin_prefetch(table + 4 * indices[std::min(i + kAhead, count - 1)]);
    std::memcpy(rows + 4 * i, table + 4 * indices[i], 4 * sizeof(T));
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
  check_row_indices(delta_indices, deltas.size(1), "delta_indices");
  check_row_indices(reference_indices, references.size(1), "reference_indices");
  const int64_t images = deltas.size(0), boxes = delta_indices.size(1), count = images * boxes;
  Tensor decoded = torch::stable::new_empty(deltas, {images, boxes, 4});
  Tensor is_large = torch::stable::new_empty(deltas, {images, boxes}, ScalarType::Bool);
  Tensor scales = torch::stable::new_empty(deltas, {2, count});  // of widths and heights
  dispatch_float_double(deltas.scalar_type(), "deltas", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<T> own_deltas(4 * count), own_references(4 * count);  // of the candidates
    for (int64_t n = 0; n < images; ++n) {
      const int64_t first = n * boxes, of_references = references.size(0) == 1 ? 0 : n;
      gather_rows(deltas.const_data_ptr<T>() + 4 * n * deltas.size(1),
                  delta_indices.const_data_ptr<int64_t>() + first, boxes,
                  own_deltas.data() + 4 * first);
      gather_rows(references.const_data_ptr<T>() + 4 * of_references * references.size(1),
                  reference_indices.const_data_ptr<int64_t>() + first, boxes,
                  own_references.data() + 4 * first);
    }
    const T* delta = own_deltas.data();
    const T* reference = own_references.data();
    const BoxCoder<T> coder{T(weights[0]), T(weights[1]), T(weights[2]), T(weights[3]),
                            T(bbox_xform_clip)};
    T* scale = scales.mutable_data_ptr<T>();
    for_each_box(count, [=](int64_t i) ALWAYS_INLINE_LAMBDA {
      scale[i] = log_scale(delta[4 * i + 2], coder.weight_w, coder.clip);
      scale[count + i] = log_scale(delta[4 * i + 3], coder.weight_h, coder.clip);
    });
    exponentiate(scales);

    T* to = decoded.mutable_data_ptr<T>();
    bool* large = is_large.mutable_data_ptr<bool>();
    const T smallest = T(min_size);
    for (int64_t n = 0; n < images; ++n) {
      const int64_t* size = image_sizes.const_data_ptr<int64_t>() + 2 * n;
      const T height = T(size[0]), width = T(size[1]);
      for_each_box(boxes, [=](int64_t k) ALWAYS_INLINE_LAMBDA {
        const int64_t i = n * boxes + k;
        const Box<T> box = decode_box(delta + 4 * i, scale[i], scale[count + i], reference + 4 * i,
                                      coder, height, width);
        to[4 * i] = box.x1;
        to[4 * i + 1] = box.y1;
        to[4 * i + 2] = box.x2;
        to[4 * i + 3] = box.y2;
        large[i] = has_min_size(box, smallest);
      });
    }
  });
  return {decoded, is_large};
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("decode_boxes", TORCH_BOX(&maskrcnn::decode_boxes));
}
