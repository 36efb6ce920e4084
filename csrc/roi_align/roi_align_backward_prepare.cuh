// RoIAlign on CUDA, backward: what the kernels share, and the one that runs before them, once per
// RoI: it places the samples, and marks the tiles that the RoI touches.
#pragma once

#include "../common/cuda_launch.cuh"
#include "roi_align_cuda.cuh"

namespace maskrcnn {

// A tile is 8x8 pixels and 64 channels: 4,096 sums, 16 per thread, which fit in registers. 64
// channels are 256 bytes of float32, so that half a warp reads a pixel of the gradient in whole
// cache lines. A larger tile would leave most pixels of a small RoI's tile untouched.
constexpr int kTile = 8;
constexpr int kTilePixels = kTile * kTile;
constexpr int kTileChannels = 64;

template <typename S>
struct GradMap {
  S* data;  // [N, H_l, W_l, F]
  int64_t height, width;
  accumulate_t<S> scale;

  HOST_DEVICE int64_t size(int axis) const { return axis == 0 ? height : width; }
  HOST_DEVICE int64_t tiles_y() const { return ceil_div<int64_t>(height, kTile); }
  HOST_DEVICE int64_t tiles_x() const { return ceil_div<int64_t>(width, kTile); }
};

// Grad: dtype of the incoming gradient; Map: of the maps that are written. Axis 0 is y, 1 is x.
template <typename Grad, typename Map>
struct BackwardArguments {
  using T = accumulate_t<Grad>;
  using Placed = TableSample<T, int>;
  GradMap<Map> maps[kMaxLevels];
  CudaRois<T> rois;
  const Grad* grad;  // [R, S, S, F]
  int64_t channels;
  int pooled_height, pooled_width, sampling_ratio;
  bool aligned;
  // Written by roi_align_backward_prepare:
  int* grids;           // [R, 2], samples per bin
  Placed* table;        // [R, 2, table_size], samples of axes that fit
  int table_size;       // at most kTableSize
  unsigned* tile_rois;  // [tiles, words], one bit per RoI that touches the tile; or null

  HOST_DEVICE int64_t channel_blocks() const { return ceil_div<int64_t>(channels, kTileChannels); }
  HOST_DEVICE int64_t words() const { return ceil_div<int64_t>(rois.count, 32); }
  HOST_DEVICE int64_t tiles(int64_t level) const {
    return rois.num_images * maps[level].tiles_y() * maps[level].tiles_x();
  }
  // Tiles are numbered from the coarsest level, which is the last, to the finest.
  HOST_DEVICE int64_t first_tile(int64_t level) const {
    int64_t tile = 0;
    for (int64_t l = rois.num_levels - 1; l > level; --l) tile += tiles(l);
    return tile;
  }

  HOST_DEVICE int pooled(int axis) const { return axis == 0 ? pooled_height : pooled_width; }
  __device__ SampleAxis<T> axis(int64_t r, int64_t level, int axis) const {
    const T* box = rois.box(r) + (axis == 0);  // x1, y1, x2, y2
    return sample_axis(box[0], box[2], T(maps[level].scale), pooled(axis), sampling_ratio, aligned);
  }
  __device__ void tile_range(
      int64_t r, int64_t level, int axis, int64_t& begin, int64_t& end) const {
    const int64_t tiles = axis == 0 ? maps[level].tiles_y() : maps[level].tiles_x();
    maskrcnn::tile_range(this->axis(r, level, axis), pooled(axis), kTile, tiles, begin, end);
  }
  __device__ int grid(int64_t r, int axis) const { return grids[2 * r + axis]; }
  __device__ Placed* samples(int64_t r, int axis) const {
    return table + (2 * r + axis) * table_size;
  }
  __device__ bool fits_table(int64_t grid, int axis) const {
    return grid * pooled(axis) <= table_size;
  }
};

// Fills grids, table and tile_rois, which is zero before.
//
// Mapping: warp -> one RoI; lane -> one sample of its y axis, then of its x axis, then one tile
// that it touches. A RoI without a level or an image marks no tile. Bits are the same in whatever
// order they are set. No shared memory.
template <typename Grad, typename Map>
__global__ void __launch_bounds__(kThreads)
    roi_align_backward_prepare(const __grid_constant__ BackwardArguments<Grad, Map> a) {
  using T = accumulate_t<Grad>;
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t r = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; r < a.rois.count; r += warps) {
    int64_t level, image;
    if (!a.rois.locate(r, level, image)) continue;
    const GradMap<Map>& map = a.maps[level];
    for (int axis = 0; axis < 2; ++axis) {
      const SampleAxis<T> samples = a.axis(r, level, axis);
      if (lane == 0) a.grids[2 * r + axis] = int(samples.grid);
      if (!a.fits_table(samples.grid, axis)) continue;
      for (int i = lane; i < a.pooled(axis) * samples.grid; i += 32) {
        a.samples(r, axis)[i] = table_sample<int>(samples, i, map.size(axis), 1);
      }
    }
    if (a.tile_rois == nullptr) continue;
    int64_t y_begin, y_end, x_begin, x_end;
    a.tile_range(r, level, 0, y_begin, y_end);
    a.tile_range(r, level, 1, x_begin, x_end);
    const int64_t width = x_end - x_begin,
                  first = a.first_tile(level) + image * map.tiles_y() * map.tiles_x();
    for (int64_t i = lane; i < (y_end - y_begin) * width; i += 32) {
      const int64_t tile = first + (y_begin + i / width) * map.tiles_x() + x_begin + i % width;
      atomicOr(&a.tile_rois[tile * a.words() + r / 32], 1u << (r % 32));
    }
  }
}

}  // namespace maskrcnn
