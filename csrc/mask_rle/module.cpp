// maskrcnn_scratch._mask_rle: numpy arrays and COCO's compressed text in, the same out.
// Documented, and to be called, through maskrcnn_scratch/ops/rle.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "../paste_masks/packed_mask.h"
#include "rle.h"

namespace py = pybind11;
using namespace mask_rle;

namespace {

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

std::string encode(const py::array_t<uint8_t>& mask) {
  const auto pixels = mask.unchecked<2>();
  check_image(pixels.shape(0), pixels.shape(1));
  RunWriter out;
  for (py::ssize_t x = 0; x < pixels.shape(1); ++x) {
    for (py::ssize_t y = 0; y < pixels.shape(0); ++y) out.push(pixels(y, x) != 0);
  }
  return to_string(out.finish());
}

void decode(const std::string& text, py::array_t<uint8_t>& zeros) {
  auto pixels = zeros.mutable_unchecked<2>();
  const int64_t height = pixels.shape(0);
  const Counts counts = checked_counts(text, height, pixels.shape(1));
  int64_t begin = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const int64_t end = begin + counts[i];
    if (i % 2 == 1) {
      int64_t x = begin / height, y = begin % height;
      for (int64_t at = begin; at < end; ++at) {
        pixels(y, x) = 1;
        if (++y == height) y = 0, ++x;
      }
    }
    begin = end;
  }
}

std::string from_counts(const Counts& counts, int64_t height, int64_t width) {
  check_image(height, width);
  check_size(counts, height, width);
  return to_string(counts);
}

std::string polygon(const py::array_t<double, py::array::c_style | py::array::forcecast>& xy,
                    int64_t height,
                    int64_t width) {
  check_image(height, width);
  if (xy.ndim() != 1 || xy.size() % 2 != 0 || xy.size() < 6) {
    throw std::invalid_argument("a polygon is x0, y0, x1, y1, ... of at least 3 points, got " +
                                std::to_string(xy.size()) + " numbers");
  }
  return to_string(from_polygon(xy.data(), xy.size() / 2, height, width));
}

std::string merge_all(const std::vector<std::string>& texts,
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
  helpers.reserve(std::max<int64_t>(num_threads, 0));
  try {
    for (int64_t i = 1; i < std::min(num_threads, count); ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads: those there are do the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
  return texts;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::vector<std::string> paste(const Floats& masks,
                               const Floats& boxes,
                               int64_t height,
                               int64_t width,
                               float threshold,
                               int64_t num_threads) {
  check_image(height, width);
  if (!(threshold > 0)) throw std::invalid_argument("threshold must be above 0");
  if (masks.ndim() != 3 || masks.shape(1) != masks.shape(2)) {
    throw std::invalid_argument("masks must be [D, M, M]");
  }
  const int64_t count = masks.shape(0), side = masks.shape(1);
  if (boxes.ndim() != 2 || boxes.shape(0) != count || boxes.shape(1) != 4) {
    throw std::invalid_argument("boxes must be [" + std::to_string(count) + ", 4]");
  }
  const float *mask = masks.data(), *box = boxes.data();
  return encode_all(count, num_threads, [&](int64_t i) {
    return from_soft_mask(mask + i * side * side, side, box + 4 * i, height, width, threshold);
  });
}

std::vector<std::string> packed(
    const py::array_t<uint64_t, py::array::c_style | py::array::forcecast>& masks,
    int64_t height,
    int64_t width,
    int64_t num_threads) {
  check_image(height, width);
  const int64_t words = maskrcnn::words_per_column(height);
  if (masks.ndim() != 3 || masks.shape(1) != width || masks.shape(2) != words) {
    throw std::invalid_argument("packed masks must be [D, " + std::to_string(width) + ", " +
                                std::to_string(words) + "]");
  }
  const uint64_t* data = masks.data();
  return encode_all(masks.shape(0), num_threads, [&](int64_t i) {
    return from_packed(data + i * width * words, height, width);
  });
}

}  // namespace

PYBIND11_MODULE(_mask_rle, m) {
  // No function touches a Python object, so other Python threads run meanwhile.
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  const auto height = py::arg("height"), width = py::arg("width");
  m.doc() = "COCO run-length masks; see maskrcnn_scratch.ops.rle";
  m.def("encode", &encode, py::arg("mask"), unlocked);
  m.def("decode", &decode, py::arg("counts"), py::arg("zeros"), unlocked);
  m.def("from_counts", &from_counts, py::arg("counts"), height, width, unlocked);
  m.def("to_counts", &checked_counts, py::arg("counts"), height, width, unlocked);
  m.def("polygon", &polygon, py::arg("xy"), height, width, unlocked);
  m.def("merge", &merge_all, py::arg("counts"), height, width, py::arg("intersect"), unlocked);
  m.def(
      "area",
      [](const std::string& text, int64_t height, int64_t width) {
        return area(checked_counts(text, height, width));
      },
      py::arg("counts"), height, width, unlocked);
  m.def(
      "bounding_box",
      [](const std::string& text, int64_t height, int64_t width) {
        return bounding_box(checked_counts(text, height, width), height);
      },
      py::arg("counts"), height, width, unlocked);
  m.def("paste", &paste, py::arg("masks"), py::arg("boxes"), height, width, py::arg("threshold"),
        py::arg("num_threads"), unlocked);
  m.def("packed", &packed, py::arg("masks"), height, width, py::arg("num_threads"), unlocked);
}
