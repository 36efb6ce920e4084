// RoIAlign on CUDA, backward: both forms gather. As the axes of the sampling grid are independent,
// a pixel's gradient from one RoI is
//
//   grad_map[y, x] += sum over ph, pw of Wy[ph, y] * Wx[pw, x] * grad[ph, pw] / count
//
// and a pixel meets few bins. A block works on tiles of 8x8 pixels and 64 channels, which stay in
// registers; it collects a batch of (RoI, tile) pairs, computes the weights of their rows and
// columns in shared memory, and sums.
//
//   deterministic: a block owns one tile, finds the RoIs that touch it in ascending order, and
//                  writes each pixel once: no atomics, no zeros to fill in first.
//   atomic:        a block owns one RoI and adds its tiles to the map, once a pixel.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/block_count.cuh"
#include "roi_align_cuda.cuh"

namespace maskrcnn {
namespace {

constexpr int kTile = 8;
constexpr int kPixels = kTile * kTile;
constexpr int kChannels = 64;
constexpr int kBatch = 8;  // (RoI, tile) pairs at a time
constexpr int kBins = 16;  // bins of an axis at a time

template <typename S>
struct GradMap {
  S* data;  // [N, H, W, C]
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
  const Grad* grad;  // [K, PH, PW, C]
  int64_t channels;
  int pooled_height, pooled_width, sampling_ratio;
  bool aligned;

  HOST_DEVICE int64_t channel_blocks() const { return ceil_div<int64_t>(channels, kChannels); }
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

// What the bins of a chunk weigh on one row or column of a tile: nothing outside [begin, end).
template <typename T>
struct PixelWeights {
  int begin, end;
  T weight[kBins];
};

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
  int begin = kBins, end = 0;
  const int count = bins - first_bin < kBins ? bins - first_bin : kBins;
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

// A step of the whole block: the weights of the chunk of bins that begins at (first_ph, first_pw).
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

// The thread's share of a tile: V channels from `channel()` on of every kStride-th pixel.
template <typename T, int V>
struct TileSums {
  static constexpr int kLanes = kChannels / V;
  static constexpr int kStride = kThreads / kLanes;
  static constexpr int kOwn = kPixels / kStride;
  static_assert(kThreads % kLanes == 0 && kPixels % kStride == 0);
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

  // grad: of this RoI, from the chunk's first bin and the thread's first channel on.
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

// One tile and the RoIs that touch it, in ascending order, a batch at a time.
template <typename Grad, typename Map>
struct TileRois {
  const BackwardArguments<Grad, Map>& a;
  int64_t level, image, tile_y, tile_x;
  int64_t next = 0;  // RoI to look at

  __device__ bool touched_by(int64_t r) const {
    int64_t roi_level, roi_image;
    if (!a.rois.locate(r, roi_level, roi_image) || roi_level != level || roi_image != image) {
      return false;
    }
    return touches(a.y_axis(r, level), a.pooled_height, tile_y, tile_y + kTile - 1) &&
           touches(a.x_axis(r, level), a.pooled_width, tile_x, tile_x + kTile - 1);
  }

  // A step of the whole block. Looks at kThreads RoIs at a time; those that a full batch has no
  // room for are looked at again. Ends with a barrier.
  template <typename T>
  __device__ void fill(Batch<T>& batch, int (&found_by_warp)[kWarps]) {
    int size = 0;
    while (size < kBatch && next < a.rois.count) {
      const int64_t r = next + threadIdx.x;
      const bool found = r < a.rois.count && touched_by(r);
      int total;
      const int place = size + count_before(found, found_by_warp, total);
      if (found && place < kBatch) {
        batch.roi[place] = r;
        batch.tile_y[place] = tile_y;
        batch.tile_x[place] = tile_x;
      }
      __syncthreads();
      size += total;
      next = size > kBatch ? batch.roi[kBatch - 1] + 1 : next + kThreads;
    }
    if (threadIdx.x == 0) batch.size = size < kBatch ? size : kBatch;
    __syncthreads();
  }
};

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    roi_align_backward_deterministic(const __grid_constant__ BackwardArguments<S, S> a) {
  using T = accumulate_t<S>;
  using Sums = TileSums<T, V>;
  __shared__ Batch<T> batch;
  __shared__ int found_by_warp[kWarps];

  int64_t items = 0;
  for (int64_t l = 0; l < a.rois.num_levels; ++l) items += a.tiles(l) * a.channel_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t channel = item % a.channel_blocks() * kChannels + Sums::channel();
    int64_t tile = item / a.channel_blocks(), level = 0;
    for (; tile >= a.tiles(level); ++level) tile -= a.tiles(level);
    const GradMap<S>& map = a.maps[level];
    TileRois<S, S> rois{a, level, tile / map.tiles_x() / map.tiles_y(),
                        tile / map.tiles_x() % map.tiles_y() * kTile, tile % map.tiles_x() * kTile};
    Sums sums;
    sums.clear();
    while (rois.next < a.rois.count) {
      rois.fill(batch, found_by_warp);
      for (int ph = 0; ph < a.pooled_height; ph += kBins) {
        for (int pw = 0; pw < a.pooled_width; pw += kBins) {
          set_batch_weights(a, level, ph, pw, batch);
          __syncthreads();
          for (int b = 0; b < batch.size && channel < a.channels; ++b) {
            const int64_t bin = (batch.roi[b] * a.pooled_height + ph) * a.pooled_width + pw;
            sums.add(a.grad + bin * a.channels + channel, a.pooled_width, a.channels, batch.rows[b],
                     batch.columns[b]);
          }
          __syncthreads();
        }
      }
    }
    if (channel >= a.channels) continue;
    sums.for_each_pixel(map, rois.image, rois.tile_y, rois.tile_x, a.channels,
                        [&](int64_t offset, const T(&values)[V]) {
                          Vector<S, V> out;
#pragma unroll
                          for (int v = 0; v < V; ++v) out.values[v] = S(values[v]);
                          store_vector<S, V>(map.data + offset + channel, out);
                        });
  }
}

template <typename T, int V>
__device__ void atomic_add(T* to, const T (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (values[v] != T(0)) atomicAdd(to + v, values[v]);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <>
__device__ void atomic_add<float, 4>(float* to, const float (&values)[4]) {
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
}
#endif

// Tiles of an axis that a RoI may touch: [begin, end).
template <typename T>
__device__ void tile_range(
    const SampleAxis<T>& axis, int bins, int64_t tiles, int64_t& begin, int64_t& end) {
  begin = 0;
  end = tiles;
  while (begin < end && !touches(axis, bins, begin * kTile, begin * kTile + kTile - 1)) ++begin;
  while (begin < end && !touches(axis, bins, end * kTile - kTile, end * kTile - 1)) --end;
}

template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    roi_align_backward_atomic(const __grid_constant__ BackwardArguments<S, accumulate_t<S>> a) {
  using T = accumulate_t<S>;
  using Sums = TileSums<T, V>;
  __shared__ Batch<T> batch;

  const int64_t items = a.rois.count * a.channel_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t r = item / a.channel_blocks();
    const int64_t channel = item % a.channel_blocks() * kChannels + Sums::channel();
    int64_t level, image;
    if (!a.rois.locate(r, level, image)) continue;  // the same for all threads
    const GradMap<T>& map = a.maps[level];
    int64_t y_begin, y_end, x_begin, x_end;
    tile_range(a.y_axis(r, level), a.pooled_height, map.tiles_y(), y_begin, y_end);
    tile_range(a.x_axis(r, level), a.pooled_width, map.tiles_x(), x_begin, x_end);
    const int64_t width = x_end - x_begin, tiles = (y_end - y_begin) * width;
    for (int64_t first = 0; first < tiles; first += kBatch) {
      for (int64_t b = threadIdx.x; b < kBatch && first + b < tiles; b += kThreads) {
        batch.roi[b] = r;
        batch.tile_y[b] = (y_begin + (first + b) / width) * kTile;
        batch.tile_x[b] = (x_begin + (first + b) % width) * kTile;
      }
      if (threadIdx.x == 0) batch.size = int(tiles - first < kBatch ? tiles - first : kBatch);
      __syncthreads();
      for (int ph = 0; ph < a.pooled_height; ph += kBins) {
        for (int pw = 0; pw < a.pooled_width; pw += kBins) {
          set_batch_weights(a, level, ph, pw, batch);
          __syncthreads();
          for (int b = 0; b < batch.size && channel < a.channels; ++b) {
            const int64_t bin = (r * a.pooled_height + ph) * a.pooled_width + pw;
            Sums sums;
            sums.clear();
            sums.add(a.grad + bin * a.channels + channel, a.pooled_width, a.channels, batch.rows[b],
                     batch.columns[b]);
            sums.for_each_pixel(map, image, batch.tile_y[b], batch.tile_x[b], a.channels,
                                [&](int64_t offset, const T(&values)[V]) {
                                  atomic_add<T, V>(map.data + offset + channel, values);
                                });
          }
          __syncthreads();
        }
      }
    }
  }
}

template <typename S, bool kDeterministic>
std::vector<Tensor> backward(const Tensor& grad,
                             const CudaRois<accumulate_t<S>>& rois,
                             const std::vector<double>& scales,
                             const std::vector<int64_t>& heights,
                             const std::vector<int64_t>& widths,
                             int sampling_ratio,
                             bool aligned) {
  using T = accumulate_t<S>;
  using Map = std::conditional_t<kDeterministic, S, T>;
  constexpr int kVector = sizeof(T) == 4 ? 4 : 2;
  const CudaLaunch launch(grad);
  const int64_t channels = grad.size(1);
  const ScalarType dtype = grad.scalar_type();
  BackwardArguments<S, Map> arguments{
      .rois = rois,
      .grad = grad.const_data_ptr<S>(),
      .channels = channels,
      .pooled_height = int(grad.size(2)),
      .pooled_width = int(grad.size(3)),
      .sampling_ratio = sampling_ratio,
      .aligned = aligned,
  };
  std::vector<Tensor> maps;
  int64_t tiles = 0;
  bool vectors = channels % kVector == 0 && is_aligned(arguments.grad, kVector * sizeof(S));
  for (size_t l = 0; l < scales.size(); ++l) {
    const std::vector<int64_t> sizes = {rois.num_images, channels, heights[l], widths[l]};
    maps.push_back(torch::stable::empty(sizes, kDeterministic ? dtype : accumulate_dtype(dtype),
                                        std::nullopt, grad.device(), std::nullopt,
                                        torch::headeronly::MemoryFormat::ChannelsLast));
    Map* data = maps[l].template mutable_data_ptr<Map>();
    arguments.maps[l] = GradMap<Map>{data, heights[l], widths[l], T(scales[l])};
    vectors = vectors && is_aligned(data, kVector * sizeof(Map));
    tiles += arguments.tiles(l);
  }
  if constexpr (kDeterministic) {
    launch("roi_align_backward_deterministic",
           vectors ? roi_align_backward_deterministic<S, kVector>
                   : roi_align_backward_deterministic<S, 1>,
           tiles * arguments.channel_blocks(), arguments);
  } else {
    for (Tensor& map : maps) torch::stable::zero_(map);
    launch("roi_align_backward_atomic",
           vectors ? roi_align_backward_atomic<S, kVector> : roi_align_backward_atomic<S, 1>,
           rois.count * arguments.channel_blocks(), arguments);
  }
  return maps;
}

std::vector<Tensor> multiscale_roi_align_backward(Tensor grad,
                                                  Tensor rois,
                                                  Tensor levels,
                                                  std::vector<double> scales,
                                                  std::vector<int64_t> heights,
                                                  std::vector<int64_t> widths,
                                                  int64_t batch_size,
                                                  int64_t sampling_ratio,
                                                  bool aligned,
                                                  bool channels_last,
                                                  bool deterministic) {
  check_backward_arguments(grad, rois, levels, scales, heights, widths, batch_size);
  check_level_count(scales.size());
  const int ratio = checked_sampling_ratio(sampling_ratio);
  const ScalarType dtype = grad.scalar_type();
  grad = torch::stable::contiguous(grad, torch::headeronly::MemoryFormat::ChannelsLast);
  rois = torch::stable::contiguous(rois);
  levels = torch::stable::contiguous(levels);
  std::vector<Tensor> maps = dispatch_floating(dtype, "grad", [&](auto tag) {
    using S = typename decltype(tag)::type;
    const CudaRois<accumulate_t<S>> view(rois, levels, scales.size(), batch_size);
    if (deterministic) {
      return backward<S, true>(grad, view, scales, heights, widths, ratio, aligned);
    }
    return backward<S, false>(grad, view, scales, heights, widths, ratio, aligned);
  });
  for (Tensor& map : maps) {
    map = torch::stable::to(map, dtype);
    if (!channels_last) map = torch::stable::contiguous(map);
  }
  return maps;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("multiscale_roi_align_backward",
               TORCH_BOX(&maskrcnn::multiscale_roi_align_backward));
}
