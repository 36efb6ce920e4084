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

#include "roi_align_backward_prepare.cuh"

namespace maskrcnn {

// (RoI, tile) pairs per batch. A batch has 8 * 2 * 8 = 128 rows and columns, whose weights half of
// the block's threads compute at once; weights then take 8 * 16 * 18 * 4 bytes, some 9 KiB of
// shared memory (18 KiB for float64).
constexpr int kBatch = 8;

// Bins of an axis whose weights are kept at a time: enough for 7 and 14, the sizes of the two
// heads. More bins take several rounds.
constexpr int kBinsPerRound = 16;

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

// Mapping: thread -> one row (axis 0) or column (axis 1) of one pair.
template <typename Grad, typename Map, typename T>
__device__ void set_weights(const BackwardArguments<Grad, Map>& a,
                            int64_t r,
                            int64_t level,
                            int axis,
                            int first_bin,
                            int64_t pixel,
                            PixelWeights<T>& weights) {
  int begin = kBinsPerRound, end = 0;
  if (pixel < a.maps[level].size(axis)) {
    const int grid = a.grid(r, axis), left = a.pooled(axis) - first_bin;
    const bool in_table = a.fits_table(grid, axis);
    const auto* samples = a.samples(r, axis) + (in_table ? first_bin * grid : 0);
    // The mean over the samples of both axes is taken in the rows.
    const T factor = axis == 0 ? T(1) / sample_count<T>(grid, a.grid(r, 1)) : T(1);
#pragma unroll 1
    for (int i = 0; i < kBinsPerRound && i < left; ++i) {
      T weight = T(0);
      if (in_table) {
#pragma unroll 1
        for (int k = 0; k < grid; ++k) {
          const auto sample = *samples++;
          if (sample.low == int(pixel)) weight += sample.w_low;
          if (sample.high == int(pixel)) weight += sample.w_high;
        }
      } else {
        weight =
            pixel_weight(a.axis(r, level, axis), first_bin + i, pixel, a.maps[level].size(axis));
      }
      weights.weight[i] = weight * factor;
      if (weight == T(0)) continue;
      if (i < begin) begin = i;
      end = i + 1;
    }
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
    const int b = i / (2 * kTile), axis = i / kTile % 2, pixel = i % kTile;
    set_weights(a, batch.roi[b], level, axis, axis == 0 ? first_ph : first_pw,
                (axis == 0 ? batch.tile_y[b] : batch.tile_x[b]) + pixel,
                axis == 0 ? batch.rows[b][pixel] : batch.columns[b][pixel]);
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
      // A pixel meets one to three bins of an axis: unrolled, most code would be for more.
#pragma unroll 1
      for (int ph = y.begin; ph < y.end; ++ph) {
        const Grad* from = grad + (int64_t(ph) * pooled_width + x.begin) * channels;
#pragma unroll 1
        for (int pw = x.begin; pw < x.end; ++pw, from += channels) {
          const auto value = load_vector<Grad, V>(from);
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
