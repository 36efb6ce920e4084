// What the CUDA kernels of RoIAlign share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "../common/vector.cuh"
#include "arguments.h"
#include "roi_align.h"

namespace maskrcnn {

// Blocks that a multiprocessor must be able to hold at once, which bounds the registers of a thread
// to 128; ptxas reports no spills. Estimate: 512 threads with four loads of 16 bytes each keep 32
// KiB in flight, twice what the latency and bandwidth of HBM3 ask of one multiprocessor.
constexpr int kBlocksPerSm = 2;
constexpr int kMaxLevels = 16;  // passed as kernel arguments, of which there can be 4 KiB

inline void check_level_count(size_t levels) {
  CHECK_ARGUMENT(levels <= kMaxLevels, "there are ", levels, " levels, CUDA takes up to ",
                 kMaxLevels);
}

// The RoIs as a kernel sees them. T: float or double.
template <typename T>
struct CudaRois {
  const T* data;          // [R, 5]
  const int64_t* levels;  // [R]
  int64_t count, num_levels, num_images;

  // Tensors must be contiguous and outlive the launch.
  CudaRois(const Tensor& rois, const Tensor& levels, int64_t num_levels, int64_t num_images)
      : data(rois.const_data_ptr<T>()),
        levels(levels.const_data_ptr<int64_t>()),
        count(rois.size(0)),
        num_levels(num_levels),
        num_images(num_images) {
    if (checked_mode()) {
      const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
      check_roi_indices<T>(torch::stable::to(rois, cpu), torch::stable::to(levels, cpu), num_levels,
                           num_images);
    }
  }

  // The level and image of RoI r; false if there is no such level or image.
  __device__ bool locate(int64_t r, int64_t& level, int64_t& image) const {
    level = levels[r];
    const T index = data[5 * r];
    if (level < 0 || level >= num_levels || !(index >= T(0) && index < T(num_images))) return false;
    image = int64_t(index);
    return true;
  }

  __device__ const T* box(int64_t r) const { return data + 5 * r + 1; }  // x1, y1, x2, y2
};

// Samples of one axis that fit in a table: 7 bins x 18 samples, or 14 x 9. With a sampling ratio of
// 2 there are 14 and 28. Adaptive grids of larger RoIs are placed by each thread.
constexpr int kTableSize = 128;

// A sample in a table. All are zero for one outside the map: it can be read like others. With
// offsets of type int, where all of them fit, it has 16 bytes: one access.
template <typename T, typename Offset>
struct alignas(sizeof(Offset) == 4 ? 16 : 8) TableSample {
  Offset low, high;
  T w_low, w_high;

  // The weights add up to 1.
  __device__ bool is_inside() const { return w_low > T(0) || w_high > T(0); }
};

// Sample i of an axis, bin after bin; `low` and `high` in elements (pixel * stride).
template <typename Offset, typename T>
__device__ TableSample<T, Offset> table_sample(const SampleAxis<T>& axis,
                                               int i,
                                               int64_t size,
                                               int64_t stride) {
  const int grid = int(axis.grid);
  Sample<T> sample;
  if (!interpolate(sample_position(axis, i / grid, i % grid), size, sample)) {
    return {};
  }
  return {Offset(sample.low * stride), Offset(sample.high * stride), sample.w_low, sample.w_high};
}

}  // namespace maskrcnn
