// RoIAlign on CUDA, backward: the gradient that one tile of a map gets from one RoI. Both backward
// kernels are built on it.
//
// The axes of a RoI's sampling grid are independent, so a pixel's gradient from one RoI is
//
//   grad_map[y, x] += sum over ph, pw of Wy[ph, y] * Wx[pw, x] * grad[ph, pw] / count
//
// A pixel meets few bins: about 2 x 2 with one sample per pixel. So the kernels gather, pixel by
// pixel, rather than add four corners per sample atomically.
#pragma once

#include "../common/block_count.cuh"
#include "roi_align_cuda.cuh"

namespace maskrcnn {

// A tile is 8x8 pixels and 64 channels: 4,096 sums, 16 per thread, which fit in registers. 64
// channels are 256 bytes of float32, so that half a warp reads a pixel of the gradient in whole
// cache lines. A larger tile would leave most pixels of a small RoI's tile untouched.
constexpr int kTile = 8;
constexpr int kTilePixels = kTile * kTile;
constexpr int kTileChannels = 64;

// (RoI, tile) pairs per batch. A batch has 8 * 2 * 8 = 128 rows and columns, whose weights half of
// the block's threads compute at once; weights then take 8 * 16 * 18 * 4 bytes, some 9 KiB of
// shared memory (18 KiB for float64).
constexpr int kBatch = 8;

// Bins of an axis whose weights are kept at a time: enough for 7 and 14, the sizes of the two
// heads. More bins take several rounds.
constexpr int kBinsPerRound = 16;

template <typename S>
struct GradMap {
  S* data;  // [N, H_l, W_l, F]
  int64_t height, width;
  accumulate_t<S> scale;

  HOST_DEVICE int64_t tiles_y() const { return ceil_div<int64_t>(height, kTile); }
  HOST_DEVICE int64_t tiles_x() const { return ceil_div<int64_t>(width, kTile); }
};

// Grad: dtype of the incoming gradient; Map: of the maps that are written.
template <typename Grad, typename Map>
struct BackwardArguments {
  using T = accumulate_t<Grad>;
  GradMap<Map> maps[kMaxLevels];
  CudaRois<T> rois;
  const Grad* grad;  // [R, S, S, F]
  int64_t channels;
  int pooled_height, pooled_width, sampling_ratio;
  bool aligned;

  HOST_DEVICE int64_t channel_blocks() const { return ceil_div<int64_t>(channels, kTileChannels); }
  HOST_DEVICE int64_t tiles(int64_t level) const {
    return rois.num_images * maps[level].tiles_y() * maps[level].tiles_x();
  }

  __device__ SampleAxis<T> y_axis(int64_t r, int64_t level) const {
    const T* box = rois.box(r);
    return sample_axis(box[1], box[3], T(maps[level].scale), pooled_height, sampling_ratio,
                       aligned);
  }
  __device__ SampleAxis<T> x_axis(int64_t r, int64_t level) const {
    const T* box = rois.box(r);
    return sample_axis(box[0], box[2], T(maps[level].scale), pooled_width, sampling_ratio, aligned);
  }
};

// Weights of a round's bins on one row or column of a tile: zero outside [begin, end).
template <typename T>
struct PixelWeights {
  int begin, end;
  T weight[kBinsPerRound];
};

// In shared memory: up to kBatch pairs of a RoI and a tile, and the weights of their rows (Wy,
// divided by the number of samples) and columns (Wx).
template <typename T>
struct Batch {
  int size;
  int64_t roi[kBatch];
  int64_t tile_y[kBatch], tile_x[kBatch];  // first pixels
  PixelWeights<T> rows[kBatch][kTile], columns[kBatch][kTile];
};

template <typename T>
__device__ void set_weights(const SampleAxis<T>& axis,
                            int first_bin,
                            int bins,
                            int64_t pixel,
                            int64_t size,
                            T factor,
                            PixelWeights<T>& weights) {
  int begin = kBinsPerRound, end = 0;
  const int count = bins - first_bin < kBinsPerRound ? bins - first_bin : kBinsPerRound;
  for (int i = 0; i < count && pixel < size; ++i) {
    const T weight = pixel_weight(axis, first_bin + i, pixel, size);
    weights.weight[i] = weight * factor;
    if (weight == T(0)) continue;
    if (i < begin) begin = i;
    end = i + 1;
  }
  weights.begin = begin;
  weights.end = end;
}

// Computes the weights of the round of bins that begins at (first_ph, first_pw).
//
// Mapping: thread -> one row or one column of one pair. All threads of the block call it, and must
// synchronise before they read the weights.
template <typename Grad, typename Map, typename T>
__device__ void set_batch_weights(const BackwardArguments<Grad, Map>& a,
                                  int64_t level,
                                  int first_ph,
                                  int first_pw,
                                  Batch<T>& batch) {
  for (int i = threadIdx.x; i < batch.size * 2 * kTile; i += kThreads) {
    const int b = i / (2 * kTile), pixel = i % kTile;
    const auto y = a.y_axis(batch.roi[b], level), x = a.x_axis(batch.roi[b], level);
    if (i / kTile % 2 == 0) {
      const T factor = T(1) / sample_count(y, x);
      set_weights(y, first_ph, a.pooled_height, batch.tile_y[b] + pixel, a.maps[level].height,
                  factor, batch.rows[b][pixel]);
    } else {
      set_weights(x, first_pw, a.pooled_width, batch.tile_x[b] + pixel, a.maps[level].width, T(1),
                  batch.columns[b][pixel]);
    }
  }
}

// A thread's share of a tile's sums, in registers.
//
// Mapping: kLanes = 64 / V neighbouring threads -> the channels of a pixel, V each; thread -> every
// kStride-th pixel. With V = 4 and 256 threads: 16 lanes, 16 pixels at a time, 4 pixels per thread.
template <typename T, int V>
struct TileSums {
  static constexpr int kLanes = kTileChannels / V;
  static constexpr int kStride = kThreads / kLanes;
  static constexpr int kOwn = kTilePixels / kStride;
  static_assert(kThreads % kLanes == 0 && kTilePixels % kStride == 0);
  T sums[kOwn][V];

  __device__ static int channel() { return threadIdx.x % kLanes * V; }
  __device__ static int pixel(int own) { return threadIdx.x / kLanes + own * kStride; }

  __device__ void clear() {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[own][v] = T(0);
    }
  }

  // grad: of this RoI, from the round's first bin and the thread's first channel on.
  template <typename Grad>
  __device__ void add(const Grad* grad,
                      int pooled_width,
                      int64_t channels,
                      const PixelWeights<T>* rows,
                      const PixelWeights<T>* columns) {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const PixelWeights<T>& y = rows[pixel(own) / kTile];
      const PixelWeights<T>& x = columns[pixel(own) % kTile];
      for (int ph = y.begin; ph < y.end; ++ph) {
        for (int pw = x.begin; pw < x.end; ++pw) {
          const auto value =
              load_vector<Grad, V>(grad + (int64_t(ph) * pooled_width + pw) * channels);
          const T weight = y.weight[ph] * x.weight[pw];
#pragma unroll
          for (int v = 0; v < V; ++v) sums[own][v] += weight * T(value.values[v]);
        }
      }
    }
  }

  // Calls write(offset into the map's data, sums of V channels) for the thread's pixels.
  template <typename Map, typename F>
  __device__ void for_each_pixel(const GradMap<Map>& map,
                                 int64_t image,
                                 int64_t tile_y,
                                 int64_t tile_x,
                                 int64_t channels,
                                 const F& write) const {
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int64_t y = tile_y + pixel(own) / kTile, x = tile_x + pixel(own) % kTile;
      if (y < map.height && x < map.width) {
        write(((image * map.height + y) * map.width + x) * channels, sums[own]);
      }
    }
  }
};

}  // namespace maskrcnn
