// RoIAlign on CUDA, forward, from channels-last maps: V channels of 16 bytes at a time.
#pragma once

#include "roi_align_forward.cuh"

namespace maskrcnn {

// Where the samples of a bin begin in the two tables.
struct BinSamples {
  int y, x;
};

// Blocks that a multiprocessor must hold: three where no registers spill.
template <typename S, int Grid>
constexpr int kVectorBlocks = sizeof(S) == 4 && Grid == 2 ? 3 : kBlocksPerSm;

// One RoI after another, up to 64 bins at a time, all channels.
//
// Mapping: block -> (RoI, block of bins). Within a block:
//   1. thread -> one sample of one axis, placed in y_table or x_table; and one bin of the block;
//   2. thread -> V channels of one bin, V * sizeof(S) = 16 bytes, so that neighbouring threads read
//      and write neighbouring channels. A channels-last output is written from here;
//   3. other outputs go through the tile, kChannels at a time: warp -> one channel, lane -> bins.
// Shared memory: y_table and x_table [kTableSize] samples each; bin_samples [kBins]; tile
// [kChannels, bins].
//
// Grid: samples per bin and axis, or 0 for any number. With Grid = 2, that of torchvision's models,
// the four samples of a bin are unrolled, their sum is divided by multiplying with 1/4, which is
// exact, and no loop or branch is left between the loads. It needs both tables to hold all samples.
//
// Needs maps aligned to V elements, and offsets within an image's map that fit in an int.
template <typename S, int V, int Grid, bool ChannelsLastOutput>
__global__ void __launch_bounds__(kThreads, kVectorBlocks<S, Grid>)
    roi_align_forward_vectors(const __grid_constant__ ForwardArguments<S> a) {
  using T = accumulate_t<S>;
  __shared__ AxisTable<T, int> y_table, x_table;
  __shared__ BinSamples bin_samples[kBins];
  __shared__ S tile[ChannelsLastOutput ? 1 : kChannels * (kBins + 1)];
  const int channels_at_once = ChannelsLastOutput ? int(a.channels) : kChannels;

  for (int64_t item = blockIdx.x; item < a.rois.count * a.bin_blocks(); item += gridDim.x) {
    const int64_t r = item / a.bin_blocks();
    const int first_bin = int(item % a.bin_blocks()) * kBins, bins = a.bins_of_block(first_bin);
    int64_t level, image;
    const bool found = a.rois.locate(r, level, image);
    const FeatureMap<S>& map = a.maps[found ? level : 0];
    // Computed where they are needed: kept in registers for all bins, they would spill in float64.
    const auto y = [&] { return y_axis(a, map, a.rois.box(r)); };
    const auto x = [&] { return x_axis(a, map, a.rois.box(r)); };
    const T count = sample_count(y().samples, x().samples);
    const bool fits = Grid > 0 || (y().samples.grid * a.pooled_height <= kTableSize &&
                                   x().samples.grid * a.pooled_width <= kTableSize);
    const int y_grid = Grid > 0 ? Grid : fits ? int(y().samples.grid) : 0;
    const int x_grid = Grid > 0 ? Grid : fits ? int(x().samples.grid) : 0;
    if (fits) {
      y_table.fill(y(), a.pooled_height, found);
      x_table.fill(x(), a.pooled_width, found);
    }
    if (int(threadIdx.x) < bins) {
      const int bin = first_bin + threadIdx.x;
      bin_samples[threadIdx.x] = {bin / a.pooled_width * y_grid, bin % a.pooled_width * x_grid};
    }
    __syncthreads();

    const S* own = map.data + (found ? image * map.stride_n : 0);
    S* to = a.output + r * a.channels * a.bins();
    for (int first = 0; first < a.channels; first += channels_at_once) {
      const int channels =
          a.channels - first < channels_at_once ? int(a.channels) - first : channels_at_once;
      const int lanes = channels / V;  // V divides the channels
      // (bin, lane) of thread i is (i / lanes, i % lanes), then of thread i + kThreads, and so on.
      int bin = threadIdx.x / lanes, lane = threadIdx.x % lanes;
      const int bin_step = kThreads / lanes, lane_step = kThreads % lanes;
      while (bin < bins) {
        const BinSamples samples = bin_samples[bin];
        const int c = lane * V;
        T sums[V] = {};
        if (fits) {
          sum_table<S, V, Grid>(own + first + c, &y_table.samples[samples.y], y_grid,
                                &x_table.samples[samples.x], x_grid, sums);
        } else if (found) {
          const int ph = (first_bin + bin) / a.pooled_width;
          const int pw = (first_bin + bin) % a.pooled_width;
#pragma unroll 1
          for (int v = 0; v < V; ++v) sums[v] = sum_placed(own + first + c + v, y(), ph, x(), pw);
        }
        Vector<S, V> result;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          result.values[v] = S(Grid == 2 ? sums[v] * T(0.25) : sums[v] / count);
        }
        if (ChannelsLastOutput) {
          store_vector(to + int64_t(first_bin + bin) * a.channels + c, result);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) tile[(c + v) * (bins | 1) + bin] = result.values[v];
        }
        bin += bin_step;
        lane += lane_step;
        if (lane >= lanes) {
          lane -= lanes;
          ++bin;
        }
      }
      __syncthreads();  // the tile is complete, and nobody reads the tables of the last channels
      if (ChannelsLastOutput) break;
      for (int c = threadIdx.x / 32; c < channels; c += kWarps) {
        S* row = to + (first + c) * a.bins() + first_bin;
        for (int b = threadIdx.x % 32; b < bins; b += 32) row[b] = tile[c * (bins | 1) + b];
      }
      __syncthreads();  // the next channels overwrite the tile
    }
  }
}

}  // namespace maskrcnn
