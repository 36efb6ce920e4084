// The ops that make and read COCO's compressed RLE. They are called through
// maskrcnn_scratch/ops/rle.py, which describes them. Bad text or sizes are a ValueError in Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "../common/checks.h"
#include "../paste_masks/packed_mask.h"
#include "rle.h"

namespace mask_rle {
namespace {

using maskrcnn::ScalarType;
using maskrcnn::Tensor;

// Pixel positions and the sum of all runs are 32-bit in COCO's format.
void check_image(int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > UINT32_MAX / width) {
    throw std::invalid_argument("mask size " + std::to_string(height) + " x " +
                                std::to_string(width) + " is empty or too large");
  }
}

Counts checked_counts(const std::string& text, int64_t height, int64_t width) {
  check_image(height, width);
  Counts counts = from_string(text);
  check_size(counts, height, width);
  return counts;
}

std::string encode(Tensor mask) {
  maskrcnn::check_dtype(mask, ScalarType::Byte, "mask");
  maskrcnn::check_dim(mask, 2, "mask", "[H, W]");
  const int64_t height = mask.size(0), width = mask.size(1);
  check_image(height, width);
  const uint8_t* pixels = mask.const_data_ptr<uint8_t>();
  const int64_t down = mask.stride(0), right = mask.stride(1);
  RunWriter out;
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t y = 0; y < height; ++y) out.push(pixels[y * down + x * right] != 0);
  }
  return to_string(out.finish());
}

void decode(std::string text, Tensor zeros) {
  maskrcnn::check_dtype(zeros, ScalarType::Byte, "zeros");
  maskrcnn::check_dim(zeros, 2, "zeros", "[H, W]");
  const int64_t height = zeros.size(0);
  const Counts counts = checked_counts(text, height, zeros.size(1));
  uint8_t* pixels = zeros.mutable_data_ptr<uint8_t>();
  const int64_t down = zeros.stride(0), right = zeros.stride(1);
  int64_t begin = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t end = begin + counts[i];
    if (i % 2 == 1) {
      int64_t x = begin / height, y = begin % height;
      for (int64_t at = begin; at < end; ++at) {
        pixels[y * down + x * right] = 1;
        if (++y == height) y = 0, ++x;
      }
    }
    begin = end;
  }
}

std::string from_counts(Tensor lengths, int64_t height, int64_t width) {
  maskrcnn::check_dtype(lengths, ScalarType::Long, "counts");
  maskrcnn::check_dim(lengths, 1, "counts", "[runs]");
  check_image(height, width);
  lengths = torch::stable::contiguous(lengths);
  const int64_t* data = lengths.const_data_ptr<int64_t>();
  Counts counts(lengths.size(0));
  for (size_t i = 0; i < counts.size(); ++i) {
    if (data[i] < 0 || data[i] > UINT32_MAX) {
      throw std::invalid_argument("RLE holds the run length " + std::to_string(data[i]));
    }
    counts[i] = static_cast<uint32_t>(data[i]);
  }
  check_size(counts, height, width);
  return to_string(counts);
}

std::string polygon(Tensor xy, int64_t height, int64_t width) {
  maskrcnn::check_dtype(xy, ScalarType::Double, "xy");
  check_image(height, width);
  if (xy.dim() != 1 || xy.numel() % 2 != 0 || xy.numel() < 6) {
    throw std::invalid_argument("a polygon is x0, y0, x1, y1, ... of at least 3 points, got " +
                                std::to_string(xy.numel()) + " numbers");
  }
  xy = torch::stable::contiguous(xy);
  return to_string(from_polygon(xy.const_data_ptr<double>(), xy.numel() / 2, height, width));
}

std::string merge_all(std::vector<std::string> texts,
                      int64_t height,
                      int64_t width,
                      bool intersect) {
  if (texts.empty()) throw std::invalid_argument("nothing to merge");
  Counts merged = checked_counts(texts[0], height, width);
  for (size_t i = 1; i < texts.size(); ++i) {
    merged = merge(merged, checked_counts(texts[i], height, width), intersect);
  }
  return to_string(merged);
}

int64_t area_of(std::string text, int64_t height, int64_t width) {
  return static_cast<int64_t>(area(checked_counts(text, height, width)));
}

std::vector<double> bounding_box_of(std::string text, int64_t height, int64_t width) {
  const auto box = bounding_box(checked_counts(text, height, width), height);
  return {box.begin(), box.end()};
}

// encode(i), the counts of mask i, as text for each of `count` masks.
template <typename Encode>
std::vector<std::string> encode_all(int64_t count, int64_t num_threads, const Encode& encode) {
  std::vector<std::string> texts(count);
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      for (int64_t i; (i = next++) < count;) texts[i] = to_string(encode(i));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int64_t i = 1; i < std::min(num_threads, count); ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads: those there are do the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
  return texts;
}

std::vector<std::string> paste(Tensor masks,
                               Tensor boxes,
                               int64_t height,
                               int64_t width,
                               double threshold,
                               int64_t num_threads) {
  maskrcnn::check_dtype(masks, ScalarType::Float, "masks");
  maskrcnn::check_dtype(boxes, ScalarType::Float, "boxes");
  check_image(height, width);
  if (!(static_cast<float>(threshold) > 0)) {
    throw std::invalid_argument("threshold must be above 0");
  }
  if (masks.dim() != 3 || masks.size(1) != masks.size(2)) {
    throw std::invalid_argument("masks must be [D, M, M]");
  }
  const int64_t count = masks.size(0), side = masks.size(1);
  if (boxes.dim() != 2 || boxes.size(0) != count || boxes.size(1) != 4) {
    throw std::invalid_argument("boxes must be [" + std::to_string(count) + ", 4]");
  }
  masks = torch::stable::contiguous(masks);
  boxes = torch::stable::contiguous(boxes);
  const float* mask = masks.const_data_ptr<float>();
  const float* box = boxes.const_data_ptr<float>();
  return encode_all(count, num_threads, [&](int64_t i) {
    return from_soft_mask(mask + i * side * side, side, box + 4 * i, height, width,
                          static_cast<float>(threshold));
  });
}

std::vector<std::string> packed(Tensor masks, int64_t height, int64_t width, int64_t num_threads) {
  maskrcnn::check_dtype(masks, ScalarType::Long, "packed masks");
  check_image(height, width);
  const int64_t words = maskrcnn::words_per_column(height);
  if (masks.dim() != 3 || masks.size(1) != width || masks.size(2) != words) {
    throw std::invalid_argument("packed masks must be [D, " + std::to_string(width) + ", " +
                                std::to_string(words) + "]");
  }
  masks = torch::stable::contiguous(masks);
  const int64_t* data = masks.const_data_ptr<int64_t>();
  return encode_all(masks.size(0), num_threads, [&](int64_t i) {
    return from_packed(data + i * width * words, height, width);
  });
}

}  // namespace
}  // namespace mask_rle

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("rle_decode", TORCH_BOX(&mask_rle::decode));
  library.impl("rle_encode", TORCH_BOX(&mask_rle::encode));
  library.impl("rle_from_counts", TORCH_BOX(&mask_rle::from_counts));
  library.impl("rle_from_packed", TORCH_BOX(&mask_rle::packed));
  library.impl("rle_from_polygon", TORCH_BOX(&mask_rle::polygon));
  library.impl("rle_paste", TORCH_BOX(&mask_rle::paste));
}

// Without a tensor there is no device to choose by.
STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CompositeExplicitAutograd, library) {
  library.impl("rle_area", TORCH_BOX(&mask_rle::area_of));
  library.impl("rle_bounding_box", TORCH_BOX(&mask_rle::bounding_box_of));
  library.impl("rle_merge", TORCH_BOX(&mask_rle::merge_all));
}
