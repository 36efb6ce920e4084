// RoIAlign on CUDA, forward: all levels and images in one launch, bit-equal to the CPU kernel.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "roi_align_cuda.cuh"

namespace maskrcnn {
namespace {

// A block takes up to 64 channels and 64 bins of one RoI. 7x7 = 49 bins fit in one block, 14x14 =
// 196 in four. The tile of results, 64 x 65 elements, takes 16.6 KB in float32 and 33.3 KB in
// float64, below the 48 KB that a block may have without asking.
constexpr int kChannels = 64;
constexpr int kBins = 64;

// Samples of one axis that fit in the tables: 7 bins x 18 samples, or 14 x 9. With a sampling ratio
// of 2 there are 14 and 28. Adaptive grids of larger RoIs are placed by each thread.
constexpr int kTableSize = 128;

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
  int64_t items() const { return rois.count * channel_blocks() * bin_blocks(); }
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

// In shared memory: the samples of all bins of one axis; low < 0 marks a sample outside the map.
// For 7x7 bins of 2x2 samples the two tables have 28 entries, instead of 4 weights and 4 offsets
// for each of 196 samples.
template <typename T>
struct AxisTable {
  Sample<T> samples[kTableSize];

  // Mapping: thread -> one sample. All threads of the block call it, and must synchronise before
  // they read the table.
  __device__ void fill(const Axis<T>& axis, int bins) {
    const int grid = int(axis.samples.grid);
    for (int i = threadIdx.x; i < bins * grid; i += kThreads) {
      if (!axis.place(i / grid, i % grid, samples[i])) samples[i].low = -1;
    }
  }
};

// V channels of one sample; `image` points to the first.
template <typename S, int V, typename T>
__device__ void add_sample(const S* image, const Sample<T>& y, const Sample<T>& x, T (&sums)[V]) {
  const auto v1 = load_vector<S, V>(image + y.low + x.low);
  const auto v2 = load_vector<S, V>(image + y.low + x.high);
  const auto v3 = load_vector<S, V>(image + y.high + x.low);
  const auto v4 = load_vector<S, V>(image + y.high + x.high);
  const T w1 = y.w_low * x.w_low, w2 = y.w_low * x.w_high;
  const T w3 = y.w_high * x.w_low, w4 = y.w_high * x.w_high;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sums[v] += ((w1 * T(v1.values[v]) + w2 * T(v2.values[v])) + w3 * T(v3.values[v])) +
               w4 * T(v4.values[v]);
  }
}

// y, x: the bin's samples in the tables.
template <typename S, int V, typename T>
__device__ void sum_table(
    const S* image, const Sample<T>* y, int y_grid, const Sample<T>* x, int x_grid, T (&sums)[V]) {
  for (int iy = 0; iy < y_grid; ++iy) {
    if (y[iy].low < 0) continue;
    for (int ix = 0; ix < x_grid; ++ix) {
      if (x[ix].low >= 0) add_sample<S, V>(image, y[iy], x[ix], sums);
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
      if (x.place(pw, ix, sx)) add_sample<S, 1>(image, sy, sx, sums);
    }
  }
  return sums[0];
}

// One RoI after another, up to 64 channels and 64 bins at a time.
//
// Mapping: block -> (RoI, block of bins, block of channels). Within a block, in three steps:
//   1. thread -> one sample of one axis, placed in y_table or x_table;
//   2. channels-last maps: thread -> V channels of one bin, V * sizeof(S) = 16 bytes, so that
//      neighbouring threads read neighbouring channels; other maps (V = 1): thread -> one bin of
//      one channel, so that neighbouring threads read neighbouring pixels. Sums go to the tile;
//   3. thread -> one element of the tile, in the order of the output, so that writes are contiguous
//      in either memory format.
// Shared memory: y_table and x_table [kTableSize] samples each; tile [channels, bins], or [bins,
// channels] for a channels-last output.
//
// V > 1 needs a channels-last map, aligned to V elements.
template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    roi_align_forward(const __grid_constant__ ForwardArguments<S> a) {
  using T = accumulate_t<S>;
  __shared__ AxisTable<T> y_table, x_table;
  __shared__ S tile[kChannels * (kBins + 1)];

  const int64_t items = a.rois.count * a.channel_blocks() * a.bin_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t r = item / (a.channel_blocks() * a.bin_blocks());
    const int64_t first_channel = item % a.channel_blocks() * kChannels;
    const int first_bin = int(item / a.channel_blocks() % a.bin_blocks()) * kBins;
    const int channels = int(a.channels - first_channel < kChannels ? a.channels - first_channel
                                                                    : int64_t(kChannels));
    const int bins = a.bins() - first_bin < kBins ? int(a.bins()) - first_bin : kBins;
    const int channel_step = a.channels_last_output ? 1 : bins | 1;  // odd: no bank conflicts
    const int bin_step = a.channels_last_output ? kChannels : 1;

    int64_t level, image;
    const bool found = a.rois.locate(r, level, image);
    const FeatureMap<S>& map = a.maps[found ? level : 0];
    const T* box = a.rois.box(r);
    const auto y_axis = [&] {
      return Axis<T>{
          sample_axis(box[1], box[3], map.scale, a.pooled_height, a.sampling_ratio, a.aligned),
          map.height, map.stride_h};
    };
    const auto x_axis = [&] {
      return Axis<T>{
          sample_axis(box[0], box[2], map.scale, a.pooled_width, a.sampling_ratio, a.aligned),
          map.width, map.stride_w};
    };
    const T count = sample_count(y_axis().samples, x_axis().samples);
    const bool fits = y_axis().samples.grid * a.pooled_height <= kTableSize &&
                      x_axis().samples.grid * a.pooled_width <= kTableSize;
    const int y_grid = fits ? int(y_axis().samples.grid) : 0;
    const int x_grid = fits ? int(x_axis().samples.grid) : 0;
    if (fits) {
      y_table.fill(y_axis(), a.pooled_height);
      x_table.fill(x_axis(), a.pooled_width);
    }
    __syncthreads();

    const int64_t stride_c = V > 1 ? 1 : map.stride_c;
    const bool over_channels = V > 1 || a.channels_last_input;
    const S* own = map.data + (found ? image * map.stride_n + first_channel * stride_c : 0);
    const int lanes = channels / V;  // V > 1 divides the channels
    for (int i = threadIdx.x; i < lanes * bins; i += kThreads) {
      const int bin = over_channels ? i / lanes : i % bins;
      const int c = V * (over_channels ? i % lanes : i / bins);
      const int ph = (first_bin + bin) / a.pooled_width;
      const int pw = (first_bin + bin) % a.pooled_width;
      S* result = &tile[c * channel_step + bin * bin_step];
      if (fits || !found) {
        T sums[V] = {};
        if (found) {
          sum_table<S, V>(own + c * stride_c, &y_table.samples[ph * y_grid], y_grid,
                          &x_table.samples[pw * x_grid], x_grid, sums);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) result[v * channel_step] = S(sums[v] / count);
      } else {
#pragma unroll 1
        for (int v = 0; v < V; ++v) {
          const T sum = sum_placed(own + (c + v) * stride_c, y_axis(), ph, x_axis(), pw);
          result[v * channel_step] = S(sum / count);
        }
      }
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

// The channels of every map lie side by side ...
bool is_channels_last(const std::vector<Tensor>& features) {
  for (const Tensor& feature : features) {
    if (feature.stride(1) != 1) return false;
  }
  return features[0].size(1) > 1;
}

// ... and can be read V at a time.
template <typename S>
bool takes_vectors(const std::vector<Tensor>& features, int64_t v) {
  for (const Tensor& feature : features) {
    if (!is_aligned(feature.const_data_ptr<S>(), v * sizeof(S))) return false;
    for (const int64_t number :
         {feature.size(1), feature.stride(0), feature.stride(2), feature.stride(3)}) {
      if (number % v != 0) return false;
    }
  }
  return is_channels_last(features);
}

template <typename S>
Tensor forward(const std::vector<Tensor>& features,
               const Tensor& rois,
               const Tensor& levels,
               const std::vector<double>& scales,
               int64_t pooled_height,
               int64_t pooled_width,
               int sampling_ratio,
               bool aligned,
               bool channels_last) {
  using T = accumulate_t<S>;
  constexpr int kVector = kVectorBytes / sizeof(S);
  const int64_t num_images = features[0].size(0), channels = features[0].size(1);
  const CudaLaunch launch(rois);
  Tensor output = torch::stable::empty({rois.size(0), channels, pooled_height, pooled_width},
                                       features[0].scalar_type(), std::nullopt,
                                       features[0].device(), std::nullopt,
                                       channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                     : torch::headeronly::MemoryFormat::Contiguous);
  ForwardArguments<S> arguments{
      .rois = CudaRois<T>(rois, levels, features.size(), num_images),
      .output = output.mutable_data_ptr<S>(),
      .channels = channels,
      .pooled_height = int(pooled_height),
      .pooled_width = int(pooled_width),
      .sampling_ratio = sampling_ratio,
      .aligned = aligned,
      .channels_last_input = is_channels_last(features),
      .channels_last_output = channels_last,
  };
  for (size_t l = 0; l < features.size(); ++l) {
    const Tensor& f = features[l];
    arguments.maps[l] = {f.const_data_ptr<S>(), f.size(2),   f.size(3),   f.stride(0),
                         f.stride(1),           f.stride(2), f.stride(3), T(scales[l])};
  }
  launch(
      "roi_align_forward",
      takes_vectors<S>(features, kVector) ? roi_align_forward<S, kVector> : roi_align_forward<S, 1>,
      arguments.items(), arguments);
  return output;
}

Tensor multiscale_roi_align(std::vector<Tensor> features,
                            Tensor rois,
                            Tensor levels,
                            std::vector<double> scales,
                            int64_t pooled_height,
                            int64_t pooled_width,
                            int64_t sampling_ratio,
                            bool aligned,
                            bool channels_last) {
  check_forward_arguments(features, rois, levels, scales, pooled_height, pooled_width);
  check_level_count(features.size());
  const int ratio = checked_sampling_ratio(sampling_ratio);
  rois = torch::stable::contiguous(rois);
  levels = torch::stable::contiguous(levels);
  return dispatch_floating(features[0].scalar_type(), "features", [&](auto tag) {
    using S = typename decltype(tag)::type;
    return forward<S>(features, rois, levels, scales, pooled_height, pooled_width, ratio, aligned,
                      channels_last);
  });
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("multiscale_roi_align", TORCH_BOX(&maskrcnn::multiscale_roi_align));
}
