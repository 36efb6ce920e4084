// RoIAlign on CUDA, backward: two kernels that divide the tiles of roi_align_backward_tile.cuh
// among the blocks in different ways.
//
//   deterministic: a block owns a tile and collects the RoIs that touch it
//   atomic:        a block owns a RoI and adds to the tiles that it touches
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "roi_align_backward_tile.cuh"

namespace maskrcnn {
namespace {

// Blocks that a multiprocessor must hold: sums of vectors leave registers for three.
template <int V>
constexpr int kBlocks = V == 4 ? 3 : kBlocksPerSm;

// RoIs of which a list is made at a time: one word of bits for each lane of a warp.
constexpr int kListed = 32 * 32;

// In shared memory: those of kListed RoIs that touch a tile.
struct TileRois {
  int size;
  int rois[kListed];  // relative to the first of the kListed

  // Lists the bits that are set, in ascending order.
  //
  // Mapping: the first warp; lane -> one word, then one bit of each word that is not zero. A bit's
  // entry in the list is the number of bits set before it. All threads of the block call it; it
  // begins and ends with a barrier.
  // Example: words 0b1001 and 0b10 give the RoIs 0, 3 and 33.
  __device__ void fill(const unsigned* words, int64_t count) {
    __syncthreads();  // nobody reads the last list
    if (threadIdx.x < 32) {
      const unsigned lane = threadIdx.x, own = lane < count ? words[lane] : 0;
      int before = 0;
      for (unsigned left = __ballot_sync(~0u, own != 0); left != 0; left &= left - 1) {
        const int word = __ffsll(left) - 1;
        const unsigned bits = __shfl_sync(~0u, own, word);
        if (bits >> lane & 1) rois[before + __popc(bits & ((1u << lane) - 1))] = 32 * word + lane;
        before += __popc(bits);
      }
      if (lane == 0) size = before;
    }
    __syncthreads();
  }
};

// Deterministic backward pass: every pixel is written once, by one thread.
//
// Mapping: block -> one tile of one map and 64 channels of it, thread -> see TileSums. The block
// lists the RoIs that touch its tile (TileRois), adds them in ascending order in registers, and
// writes the sums, zeros included: maps need no fill, results no atomics. Tiles of coarse levels
// come first: many RoIs touch each, so that their blocks take longest.
// Shared memory: TileRois (1,024 RoIs); Batch (at most 8 of them and their weights).
//
// Cost: the gradient of a RoI is read once per tile that it touches. Estimate for 1,000 RoIs of
// 800x1344: 190 MB read from L2 for 50 MB of gradient.
template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    roi_align_backward_deterministic(const __grid_constant__ BackwardArguments<S, S> a) {
  using T = accumulate_t<S>;
  using Sums = TileSums<T, V>;
  __shared__ TileRois list;
  __shared__ Batch<T> batch;

  const int64_t items = a.first_tile(-1) * a.channel_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t channel = item % a.channel_blocks() * kTileChannels + Sums::channel();
    const unsigned* words = a.tile_rois + item / a.channel_blocks() * a.words();
    int64_t tile = item / a.channel_blocks(), level = a.rois.num_levels - 1;
    for (; tile >= a.tiles(level); --level) tile -= a.tiles(level);
    const GradMap<S>& map = a.maps[level];
    const int64_t tile_y = tile / map.tiles_x() % map.tiles_y() * kTile;
    const int64_t tile_x = tile % map.tiles_x() * kTile;
    Sums sums;
    sums.clear();
    for (int64_t first = 0; first < a.rois.count; first += kListed) {
      list.fill(words + first / 32, a.words() - first / 32);
      for (int begin = 0; begin < list.size; begin += kBatch) {
        const int b = threadIdx.x;
        if (b < kBatch && begin + b < list.size) {
          batch.roi[b] = first + list.rois[begin + b];
          batch.tile_y[b] = tile_y;
          batch.tile_x[b] = tile_x;
        }
        if (b == 0) batch.size = list.size - begin < kBatch ? list.size - begin : kBatch;
        __syncthreads();
        for (int ph = 0; ph < a.pooled_height; ph += kBinsPerRound) {
          for (int pw = 0; pw < a.pooled_width; pw += kBinsPerRound) {
            set_batch_weights(a, level, ph, pw, batch);
            __syncthreads();
            for (int b = 0; b < batch.size && channel < a.channels; ++b) {
              const int64_t bin = (batch.roi[b] * a.pooled_height + ph) * a.pooled_width + pw;
              sums.add(a.grad + bin * a.channels + channel, a.pooled_width, a.channels,
                       batch.rows[b], batch.columns[b]);
            }
            __syncthreads();
          }
        }
      }
    }
    if (channel >= a.channels) continue;
    const int64_t image = tile / map.tiles_x() / map.tiles_y();
    sums.for_each_pixel(map, image, tile_y, tile_x, a.channels,
                        [&](int64_t offset, const T(&values)[V]) {
                          Vector<S, V> out;
#pragma unroll
                          for (int v = 0; v < V; ++v) out.values[v] = S(values[v]);
                          store_vector<S, V>(map.data + offset + channel, out);
                        });
  }
}

// Adds V channels of a pixel; zeros need no atomic.
template <typename T, int V>
__device__ void atomic_add(T* to, const T (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (values[v] != T(0)) atomicAdd(to + v, values[v]);
  }
}

// The one line that the emulation in tests/cuda does not reach.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <>
__device__ void atomic_add<float, 4>(float* to, const float (&values)[4]) {
  const float4 four = make_float4(values[0], values[1], values[2], values[3]);
  if (four.x != 0 || four.y != 0 || four.z != 0 || four.w != 0) {
    atomicAdd(reinterpret_cast<float4*>(to), four);
  }
}
#endif

// Atomic backward pass: a RoI adds to the maps, which are zero before.
//
// Mapping: block -> one RoI and 64 channels of it, thread -> see TileSums. The block walks over the
// tiles that its RoI touches, kBatch at a time, and adds each pixel of a tile once: with 16-byte
// atomics where the device has them (sm_90), else element by element.
// Shared memory: Batch (at most 8 tiles and their weights).
//
// Estimate: faster than the deterministic kernel where many RoIs touch few tiles, which then are
// the work of few blocks. The sums are rounded in an order that differs from run to run.
template <typename S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<V>)
    roi_align_backward_atomic(const __grid_constant__ BackwardArguments<S, accumulate_t<S>> a) {
  using T = accumulate_t<S>;
  using Sums = TileSums<T, V>;
  __shared__ Batch<T> batch;

  const int64_t items = a.rois.count * a.channel_blocks();
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t r = item / a.channel_blocks();
    const int64_t channel = item % a.channel_blocks() * kTileChannels + Sums::channel();
    int64_t level, image;
    if (!a.rois.locate(r, level, image)) continue;  // the same for all threads
    const GradMap<T>& map = a.maps[level];
    int64_t y_begin, y_end, x_begin, x_end;
    a.tile_range(r, level, 0, y_begin, y_end);
    a.tile_range(r, level, 1, x_begin, x_end);
    const int64_t width = x_end - x_begin, tiles = (y_end - y_begin) * width;
    for (int64_t first = 0; first < tiles; first += kBatch) {
      for (int64_t b = threadIdx.x; b < kBatch && first + b < tiles; b += kThreads) {
        batch.roi[b] = r;
        batch.tile_y[b] = (y_begin + (first + b) / width) * kTile;
        batch.tile_x[b] = (x_begin + (first + b) % width) * kTile;
      }
      if (threadIdx.x == 0) batch.size = int(tiles - first < kBatch ? tiles - first : kBatch);
      __syncthreads();
      for (int ph = 0; ph < a.pooled_height; ph += kBinsPerRound) {
        for (int pw = 0; pw < a.pooled_width; pw += kBinsPerRound) {
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
  const int64_t longest = std::max(grad.size(2), grad.size(3)) * sampling_ratio;
  arguments.table_size = int(sampling_ratio > 0 && longest < kTableSize ? longest : kTableSize);
  using Placed = typename BackwardArguments<S, Map>::Placed;
  const auto ints = [&](std::vector<int64_t> sizes) {
    return torch::stable::new_empty(grad, sizes, ScalarType::Int);
  };
  Tensor grids = ints({rois.count, 2});
  Tensor table = ints({rois.count, 2, arguments.table_size, sizeof(Placed) / sizeof(int)});
  arguments.grids = grids.mutable_data_ptr<int>();
  arguments.table = reinterpret_cast<Placed*>(table.mutable_data_ptr<int>());
  std::vector<Tensor> maps;
  bool vectors = channels % kVector == 0 && is_aligned(arguments.grad, kVector * sizeof(S));
  for (size_t l = 0; l < scales.size(); ++l) {
    const std::vector<int64_t> sizes = {rois.num_images, channels, heights[l], widths[l]};
    maps.push_back(torch::stable::empty(sizes, kDeterministic ? dtype : accumulate_dtype(dtype),
                                        std::nullopt, grad.device(), std::nullopt,
                                        torch::headeronly::MemoryFormat::ChannelsLast));
    Map* data = maps[l].template mutable_data_ptr<Map>();
    arguments.maps[l] = GradMap<Map>{data, heights[l], widths[l], T(scales[l])};
    vectors = vectors && is_aligned(data, kVector * sizeof(Map));
  }
  const int64_t tiles = arguments.first_tile(-1);  // of all levels
  Tensor tile_rois = ints({kDeterministic ? tiles : 0, arguments.words()});
  if (kDeterministic) {
    torch::stable::zero_(tile_rois);
    arguments.tile_rois = reinterpret_cast<unsigned*>(tile_rois.mutable_data_ptr<int>());
  }
  launch("roi_align_backward_prepare", roi_align_backward_prepare<S, Map>,
         ceil_div<int64_t>(rois.count, kWarps), arguments);
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
