// The schema of every op. Kernels are registered in their own files; fake tensors and autograd in
// Python, in maskrcnn_scratch/ops/. Shapes, dtypes and conventions are described in the docstring
// of the Python wrapper.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(maskrcnn_scratch, library) {
  library.def("conv3x3(Tensor input, Tensor weight, Tensor bias, bool relu) -> Tensor");
  library.def("conv3x3_weight_gradient(Tensor input, Tensor grad) -> Tensor");
  library.def(
      "decode_boxes(Tensor deltas, Tensor delta_indices, Tensor references, "
      "Tensor reference_indices, Tensor image_sizes, float[] weights, float bbox_xform_clip, "
      "float min_size) -> (Tensor boxes, Tensor has_min_size)");
  library.def(
      "fpn_levels(Tensor boxes, int finest, int coarsest, float canonical_scale, "
      "float canonical_level, float epsilon) -> Tensor");
  library.def(
      "max_iou(Tensor gt_boxes, Tensor boxes, bool find_low_quality_matches) "
      "-> (Tensor iou, Tensor gt, Tensor is_low_quality_match)");
  library.def(
      "multiscale_roi_align(Tensor[] features, Tensor rois, Tensor levels, float[] scales, "
      "int pooled_height, int pooled_width, int sampling_ratio, bool aligned, bool channels_last) "
      "-> Tensor");
  library.def(
      "multiscale_roi_align_backward(Tensor grad, Tensor rois, Tensor levels, float[] scales, "
      "SymInt[] heights, SymInt[] widths, SymInt batch_size, int sampling_ratio, bool aligned, "
      "bool channels_last, bool deterministic) -> Tensor[]");
  library.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor groups, float iou_threshold, SymInt max_out, "
      "SymInt num_groups, int offset_limit=0) -> (Tensor indices, Tensor count)");
  library.def("paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width) -> Tensor");
  library.def(
      "paste_masks_packed(Tensor masks, Tensor boxes, SymInt height, SymInt width, "
      "float threshold) -> Tensor");
  library.def("rle_area(str counts, int height, int width) -> int");
  library.def("rle_bounding_box(str counts, int height, int width) -> float[]");
  library.def("rle_decode(str counts, Tensor(a!) zeros) -> ()");
  library.def("rle_encode(Tensor mask) -> str");
  library.def("rle_from_counts(Tensor counts, int height, int width) -> str");
  library.def("rle_from_packed(Tensor masks, int height, int width, int num_threads) -> str[]");
  library.def("rle_from_polygon(Tensor xy, int height, int width) -> str");
  library.def("rle_merge(str[] counts, int height, int width, bool intersect) -> str");
  library.def(
      "rle_paste(Tensor masks, Tensor boxes, int height, int width, float threshold, "
      "int num_threads) -> str[]");
  library.def("top_k_of_levels(Tensor values, int[] level_sizes, int k) -> Tensor");
}

// Importing the module loads the library, which registers the ops.
PyMODINIT_FUNC PyInit__cpu(void) {
  static PyModuleDef module = {};
  module.m_base = PyModuleDef_HEAD_INIT;
  module.m_name = "_cpu";
  return PyModule_Create(&module);
}
