// 3x3 convolution by Winograd on the CPU, channels-last. A task is a block of tiles, each
// m x m outputs: its inputs are transformed, point by point multiplied with the weights, and the
// products transformed back, all in memory of the thread's own that stays in its cache. Vectors run
// over channels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/cpu_isa.h"
#include "../common/host_memory.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "conv3x3.h"
#include "matrix_product.h"
#include "tiles.h"

namespace maskrcnn {
namespace {

// input [N, H, W, F], output [N, H, W, O], weight [points, O / 32, F, 32].
struct Convolution {
  const float* input;
  const float* weight;
  const float* bias;
  float* output;
  int64_t images, height, width, channels, out_channels;
  bool relu;
};

template <int kOutputs>
class Block {
  using Transform = Winograd<kOutputs>;
  static constexpr int kInputs = Transform::kInputs, kPoints = kInputs * kInputs;

 public:
  Block(const Convolution& conv, int64_t block_tiles)
      : conv_(conv),
        tiles_{conv.input, conv.images, conv.height, conv.width, conv.channels},
        block_tiles_(block_tiles),
        // A line more than it takes, so that points do not meet in the same sets of a cache.
        point_stride_(block_tiles * conv.channels + kLanes) {}

  int64_t tiles() const { return tiles_.count(); }
  int64_t scratch_size() const {
    return conv_.channels + kPoints * point_stride_ + block_tiles_ * tile_stride();
  }

  // Computes tiles [first, first + block_tiles).
  void run(int64_t first, float* scratch) const {
    const int64_t count = std::min(block_tiles_, tiles() - first);
    float* zeros = scratch;
    float* inputs = zeros + conv_.channels;              // [points][count / 12][F / 16][12][16]
    float* products = inputs + kPoints * point_stride_;  // [count][points][O]
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { transform_inputs(first, count, zeros, inputs); });
    multiply(count, inputs, products);
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { transform_outputs(first, count, products); });
  }

 private:
  int64_t tile_stride() const { return kPoints * conv_.out_channels + kLanes; }

  ALWAYS_INLINE_LAMBDA void transform_inputs(int64_t first,
                                             int64_t count,
                                             float* zeros,
                                             float* inputs) const {
    std::fill_n(zeros, conv_.channels, 0.0f);
    for (int64_t i = 0; i < round_up(count, kRows); ++i) {
      const float* pixels[kInputs][kInputs];
      if (i < count) {
        tiles_.template find_pixels<kInputs, 1>(first + i, zeros, pixels);
      } else {
        for (auto& row : pixels) std::fill_n(row, kInputs, zeros);
      }
      float* to = inputs + i / kRows * (kRows * conv_.channels) + i % kRows * kLanes;
      for (int64_t c = 0; c < conv_.channels; c += kLanes, to += kRows * kLanes) {
        transform_tile<kInputs>(
            pixels, c,
            [](const auto& d, auto& t) ALWAYS_INLINE_LAMBDA { Transform::transform_input(d, t); },
            to, point_stride_);
      }
    }
  }

  void multiply(int64_t count, const float* inputs, float* products) const {
    const MatrixProduct product = matrix_product();
    const int64_t channels = conv_.channels;
    for (int64_t point = 0; point < kPoints; ++point) {
      for (int64_t o = 0; o < conv_.out_channels; o += kColumns) {
        const float* weight = conv_.weight + (point * conv_.out_channels + o) * channels;
        for (int64_t i = 0; i < count; i += kRows) {
          product(inputs + point * point_stride_ + i * channels, weight, channels,
                  products + i * tile_stride() + point * conv_.out_channels + o, tile_stride());
        }
      }
    }
  }

  ALWAYS_INLINE_LAMBDA void transform_outputs(int64_t first,
                                              int64_t count,
                                              const float* products) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t tile = first + i;
      const int64_t column = tile % tiles_.columns(), row = tile / tiles_.columns() % tiles_.rows();
      const int64_t image = tile / tiles_.columns() / tiles_.rows();
      const int64_t rows = std::min<int64_t>(kOutputs, conv_.height - row * kOutputs);
      const int64_t columns = std::min<int64_t>(kOutputs, conv_.width - column * kOutputs);
      float* to = conv_.output +
                  ((image * conv_.height + row * kOutputs) * conv_.width + column * kOutputs) *
                      conv_.out_channels;
      const float* from = products + i * tile_stride();
      for (int64_t o = 0; o < conv_.out_channels; o += kLanes) {
        Pack halfway[kInputs][kOutputs];  // [x][y]
        for (int x = 0; x < kInputs; ++x) {
          Pack m[kInputs];
          for (int y = 0; y < kInputs; ++y) {
            load(from + (y * kInputs + x) * conv_.out_channels + o, m[y]);
          }
          Transform::transform_output(m, halfway[x]);
        }
        Pack bias;
        load(conv_.bias + o, bias);
        for (int64_t y = 0; y < rows; ++y) {
          Pack m[kInputs], result[kOutputs];
          for (int x = 0; x < kInputs; ++x) m[x] = halfway[x][y];
          Transform::transform_output(m, result);
          for (int64_t x = 0; x < columns; ++x) {
            Pack value = result[x] + bias;
            if (conv_.relu) value = value < 0.0f ? Pack{} : value;  // NaN stays
            store(value, to + (y * conv_.width + x) * conv_.out_channels + o);
          }
        }
      }
    }
  }

  Convolution conv_;
  Tiles<kOutputs> tiles_;
  int64_t block_tiles_, point_stride_;
};

// Tiles of a block at most: few keep the thread's memory in its cache, many read the weights less
// often. Measured on a CPU with 1 MiB of second-level cache.
template <int kOutputs>
int64_t most_tiles(const Convolution& conv) {
  constexpr int64_t kLargeWeight = int64_t{1} << 22;  // in floats: more than the last cache keeps
  constexpr int64_t kPoints = Winograd<kOutputs>::kInputs * Winograd<kOutputs>::kInputs;
  if (kPoints * conv.channels * conv.out_channels >= kLargeWeight) return 96;
  return kOutputs == 4 ? 36 : 48;
}

template <int kOutputs>
void convolve(const Convolution& conv) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t most = most_tiles<kOutputs>(conv);
  const int64_t all = Block<kOutputs>(conv, most).tiles();
  const int64_t blocks = round_up((all + most - 1) / most, threads);  // the same for each thread
  const int64_t block_tiles = round_up((all + blocks - 1) / blocks, kRows);
  const Block<kOutputs> block(conv, block_tiles);
  const int64_t size = round_up(block.scratch_size(), 1024);
  Tensor scratch = empty_cpu({threads, 1, 1, size}, ScalarType::Float, false);
  float* memory = scratch.mutable_data_ptr<float>();
  parallel_tasks_of_workers(
      (all + block_tiles - 1) / block_tiles,
      [&](int64_t worker, int64_t task) { block.run(task * block_tiles, memory + worker * size); });
}

Tensor conv3x3(Tensor input, Tensor weight, Tensor bias, bool relu) {
  const int64_t outputs = check_conv3x3(input, weight, bias);
  weight = torch::stable::contiguous(weight);
  bias = torch::stable::contiguous(bias);
  input = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  const int64_t out_channels = bias.size(0);
  Tensor output = empty_cpu({input.size(0), out_channels, input.size(2), input.size(3)},
                            ScalarType::Float, true);
  const Convolution conv{input.const_data_ptr<float>(),
                         weight.const_data_ptr<float>(),
                         bias.const_data_ptr<float>(),
                         output.mutable_data_ptr<float>(),
                         input.size(0),
                         input.size(2),
                         input.size(3),
                         input.size(1),
                         out_channels,
                         relu};
  if (output.numel() == 0) return output;
  outputs == 2 ? convolve<2>(conv) : convolve<4>(conv);
  return output;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("conv3x3", TORCH_BOX(&maskrcnn::conv3x3));
}
