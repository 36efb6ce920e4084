// RoIAlign on CUDA, forward: what the kernels share, and the kernel for maps of any layout.
#pragma once

#include "../common/cuda_launch.cuh"
#include "roi_align_cuda.cuh"

namespace maskrcnn {

// A block takes up to 64 channels and 64 bins of one RoI at a time. 7x7 = 49 bins fit in one block,
// 14x14 = 196 in four. The tile of results, 64 x 65 elements, takes 16.6 KB in float32 and 33.3 KB
// in float64, below the 48 KB that a block may have without asking.
constexpr int kChannels = 64;
constexpr int kBins = 64;
static_assert(kBins <= kThreads);

template <typename S>
struct FeatureMap {
  const S* data;
  int64_t height, width;
  int64_t stride_n, stride_c, stride_h, stride_w;
  accumulate_t<S> scale;
};

template <typename S>
struct ForwardArguments {
  FeatureMap<S> maps[kMaxLevels];
  CudaRois<accumulate_t<S>> rois;
  S* output;
  int64_t channels;
  int pooled_height, pooled_width, sampling_ratio;  // bins are counted in 31 bits
  bool aligned;
  bool channels_last_input, channels_last_output;

  HOST_DEVICE int64_t bins() const { return int64_t(pooled_height) * pooled_width; }
  HOST_DEVICE int64_t channel_blocks() const { return ceil_div<int64_t>(channels, kChannels); }
  HOST_DEVICE int64_t bin_blocks() const { return ceil_div<int64_t>(bins(), kBins); }
  __device__ int bins_of_block(int first_bin) const {
    return bins() - first_bin < kBins ? int(bins()) - first_bin : kBins;
  }
};

// One axis of a RoI on its map.
template <typename T>
struct Axis {
  SampleAxis<T> samples;
  int64_t size, stride;

  // `low` and `high` in elements; false for a sample outside the map.
  __device__ bool place(int64_t bin, int64_t index, Sample<T>& sample) const {
    if (!interpolate(sample_position(samples, bin, index), size, sample)) return false;
    sample.low *= stride;
    sample.high *= stride;
    return true;
  }
};

template <typename S, typename T = accumulate_t<S>>
__device__ Axis<T> y_axis(const ForwardArguments<S>& a, const FeatureMap<S>& map, const T* box) {
  return {sample_axis(box[1], box[3], map.scale, a.pooled_height, a.sampling_ratio, a.aligned),
          map.height, map.stride_h};
}
template <typename S, typename T = accumulate_t<S>>
__device__ Axis<T> x_axis(const ForwardArguments<S>& a, const FeatureMap<S>& map, const T* box) {
  return {sample_axis(box[0], box[2], map.scale, a.pooled_width, a.sampling_ratio, a.aligned),
          map.width, map.stride_w};
}

// In shared memory: the samples of all bins of one axis. For 7x7 bins of 2x2 samples the two tables
// have 28 entries, instead of 4 weights and 4 offsets for each of 196 samples.
template <typename T, typename Offset>
struct AxisTable {
  TableSample<T, Offset> samples[kTableSize];

  // Mapping: thread -> one sample. All threads of the block call it, and must synchronise before
  // they read the table. Without a map, all samples are outside.
  __device__ void fill(const Axis<T>& axis, int bins, bool has_map) {
    for (int i = threadIdx.x; i < bins * axis.samples.grid; i += kThreads) {
      samples[i] = has_map ? table_sample<Offset>(axis.samples, i, axis.size, axis.stride)
                           : TableSample<T, Offset>{};
    }
  }
};

// V channels of one sample; `image` points to the first. Nothing is added if it is not `inside`.
template <typename S, int V, typename Placed, typename T>
__device__ void add_sample(
    const S* image, const Placed& y, const Placed& x, bool inside, T (&sums)[V]) {
  const auto v1 = load_vector<S, V>(image + (y.low + x.low));
  const auto v2 = load_vector<S, V>(image + (y.low + x.high));
  const auto v3 = load_vector<S, V>(image + (y.high + x.low));
  const auto v4 = load_vector<S, V>(image + (y.high + x.high));
  const T w1 = y.w_low * x.w_low, w2 = y.w_low * x.w_high;
  const T w3 = y.w_high * x.w_low, w4 = y.w_high * x.w_high;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const T value = ((w1 * T(v1.values[v]) + w2 * T(v2.values[v])) + w3 * T(v3.values[v])) +
                    w4 * T(v4.values[v]);
    if (inside) sums[v] += value;  // the weights 0 of one outside would make NaN of infinity
  }
}

// V channels of one bin; y, x: its samples in the tables. Grid: y_grid and x_grid, or 0 for any.
template <typename S, int V, int Grid, typename Placed, typename T>
__device__ __forceinline__ void sum_table(
    const S* image, const Placed* y, int y_grid, const Placed* x, int x_grid, T (&sums)[V]) {
  constexpr int kUnrolled = Grid > 0 ? Grid : 1;
#pragma unroll kUnrolled
  for (int iy = 0; iy < y_grid; ++iy) {
    const Placed sample_y = y[iy];
#pragma unroll kUnrolled
    for (int ix = 0; ix < x_grid; ++ix) {
      const Placed sample_x = x[ix];
      const bool inside = sample_y.is_inside() && sample_x.is_inside();
      add_sample<S, V>(image, sample_y, sample_x, inside, sums);
    }
  }
}

// One channel of one bin, for grids that exceed the tables: the thread places the samples itself.
template <typename S, typename T>
__device__ T sum_placed(const S* image, const Axis<T>& y, int ph, const Axis<T>& x, int pw) {
  T sums[1] = {T(0)};
  int64_t y_begin, y_end, x_begin, x_end;
  samples_inside(y.samples, ph, y.size, y_begin, y_end);
  samples_inside(x.samples, pw, x.size, x_begin, x_end);
  for (int64_t iy = y_begin; iy < y_end; ++iy) {
    Sample<T> sy, sx;
    if (!y.place(ph, iy, sy)) continue;
    for (int64_t ix = x_begin; ix < x_end; ++ix) {
      if (x.place(pw, ix, sx)) add_sample<S, 1>(image, sy, sx, true, sums);
    }
  }
  return sums[0];
}

// One RoI after another, up to 64 channels and 64 bins at a time, from maps of any layout.
//
// Mapping: block -> (RoI, block of bins, block of channels). Within a block, in three steps:
//   1. thread -> one sample of one axis, placed in y_table or x_table;
//   2. thread -> one channel of one bin: neighbouring threads read neighbouring channels of
//      channels-last maps, and neighbouring pixels of others. Sums go to the tile;
//   3. thread -> one element of the tile, in the order of the output, so that writes are contiguous
//      in either memory format.
// Shared memory: y_table and x_table [kTableSize] samples each; tile [channels, bins], or [bins,
// channels] for a channels-last output.
template <typename S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    roi_align_forward(const __grid_constant__ ForwardArguments<S> a) {
  using T = accumulate_t<S>;
  __shared__ AxisTable<T, int64_t> y_table, x_table;
  __shared__ S tile[kChannels * (kBins + 1)];

  const int64_t items = a.rois.count * a.channel_blocks() * a.bin_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t r = item / (a.channel_blocks() * a.bin_blocks());
    const int64_t first_channel = item % a.channel_blocks() * kChannels;
    const int first_bin = int(item / a.channel_blocks() % a.bin_blocks()) * kBins;
    const int channels = int(a.channels - first_channel < kChannels ? a.channels - first_channel
                                                                    : int64_t(kChannels));
    const int bins = a.bins_of_block(first_bin);
    const int channel_step = a.channels_last_output ? 1 : bins | 1;  // odd: no bank conflicts
    const int bin_step = a.channels_last_output ? kChannels : 1;

    int64_t level, image;
    const bool found = a.rois.locate(r, level, image);
    const FeatureMap<S>& map = a.maps[found ? level : 0];
    // Computed where they are needed: kept in registers for all bins, they would spill in float64.
    const auto y = [&] { return y_axis(a, map, a.rois.box(r)); };
    const auto x = [&] { return x_axis(a, map, a.rois.box(r)); };
    const T count = sample_count(y().samples, x().samples);
    const bool fits = y().samples.grid * a.pooled_height <= kTableSize &&
                      x().samples.grid * a.pooled_width <= kTableSize;
    const int y_grid = fits ? int(y().samples.grid) : 0, x_grid = fits ? int(x().samples.grid) : 0;
    if (fits) {
      y_table.fill(y(), a.pooled_height, found);
      x_table.fill(x(), a.pooled_width, found);
    }
    __syncthreads();

    const S* own = map.data + (found ? image * map.stride_n + first_channel * map.stride_c : 0);
    for (int i = threadIdx.x; i < channels * bins; i += kThreads) {
      const int bin = a.channels_last_input ? i / channels : i % bins;
      const int c = a.channels_last_input ? i % channels : i / bins;
      const int ph = (first_bin + bin) / a.pooled_width;
      const int pw = (first_bin + bin) % a.pooled_width;
      T sums[1] = {};
      if (fits) {
        sum_table<S, 1, 0>(own + c * map.stride_c, &y_table.samples[ph * y_grid], y_grid,
                           &x_table.samples[pw * x_grid], x_grid, sums);
      } else if (found) {
        sums[0] = sum_placed(own + c * map.stride_c, y(), ph, x(), pw);
      }
      tile[c * channel_step + bin * bin_step] = S(sums[0] / count);
    }
    __syncthreads();

    S* to = a.output + r * a.channels * a.bins();
    for (int i = threadIdx.x; i < channels * bins; i += kThreads) {
      const int c = a.channels_last_output ? i % channels : i / bins;
      const int bin = a.channels_last_output ? i / channels : i % bins;
      const int64_t offset = a.channels_last_output
                                 ? int64_t(first_bin + bin) * a.channels + first_channel + c
                                 : (first_channel + c) * a.bins() + first_bin + bin;
      to[offset] = tile[c * channel_step + bin * bin_step];
    }
    // The next item writes the tables, which nobody reads by now, then synchronises.
  }
}

}  // namespace maskrcnn
