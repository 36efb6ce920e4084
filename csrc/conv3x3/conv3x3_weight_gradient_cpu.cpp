// Gradient of the weight of a 3x3 convolution by Winograd's F(2x2, 3x3) on the CPU, channels-last.
// Point by point, it is a sum over tiles of outer products: transformed inputs by transformed
// gradients of outputs. The threads share the tiles of a block to transform them, then the sums.
// Each sum has a fixed order, whatever the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/cpu_isa.h"
#include "../common/host_memory.h"
#include "../common/parallel.h"
#include "arguments.h"
#include "conv3x3.h"
#include "outer_products.h"
#include "tiles.h"

namespace maskrcnn {
namespace {

using Transform = Winograd<2>;
constexpr int kOutputs = Transform::kOutputs, kInputs = Transform::kInputs;
constexpr int kPoints = kInputs * kInputs;

// Tiles that are transformed at a time. Few keep them in a cache, many read and write the sums less
// often: 64 and 192 were no faster than 128.
constexpr int64_t kBlock = 128;
// Tiles whose sums are added up one block after the other; the filters that they give are then
// added up. Rounding errors grow with the number of additions in a row.
constexpr int64_t kGroup = 16 * kBlock;

class WeightGradient {
 public:
  // Adds to result [O, 3, 3, F].
  WeightGradient(const Tiles<kOutputs>& input, const Tiles<kOutputs>& grad, float* result)
      : input_(input),
        grad_(grad),
        result_(result),
        zeros_(std::max(input.channels, grad.channels)),
        memory_(empty_cpu(
            {1, 1, 1,
             kPoints * (stride_of(input) + stride_of(grad) + input.channels * grad.channels)},
            ScalarType::Float,
            false)),
        inputs_(memory_.mutable_data_ptr<float>()),
        grads_(inputs_ + kPoints * stride_of(input)),
        sums_(grads_ + kPoints * stride_of(grad)) {}

  void run() const {
    constexpr int64_t kTilesOfTask = 8;
    for (int64_t first = 0; first < input_.count(); first += kBlock) {
      const int64_t count = std::min(kBlock, input_.count() - first);
      parallel_tasks((count + kTilesOfTask - 1) / kTilesOfTask, [&](int64_t task) {
        const int64_t begin = task * kTilesOfTask, end = std::min(begin + kTilesOfTask, count);
        with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { transform(first, begin, end); });
      });
      const bool begins = first % kGroup == 0;
      parallel_tasks(kPoints * panels(), [&](int64_t task) { add_products(task, count, begins); });
      if ((first + kBlock) % kGroup == 0 || first + count == input_.count()) {
        parallel_tasks(panels(), [&](int64_t panel) {
          with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { add_filters(panel); });
        });
      }
    }
  }

 private:
  int64_t panels() const { return grad_.channels / kColumns; }
  // A line more than it takes, so that points do not meet in the same sets of a cache.
  static int64_t stride_of(const Tiles<kOutputs>& map) { return map.channels * kBlock + kLanes; }

  // Tiles [first + begin, first + end).
  ALWAYS_INLINE_LAMBDA void transform(int64_t first, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const float* pixels[kInputs][kInputs];
      input_.find_pixels<kInputs, 1>(first + i, zeros_.data(), pixels);
      for (int64_t c = 0; c < input_.channels; c += kLanes) {
        transform_tile<kInputs>(
            pixels, c,
            [](const auto& d, auto& t) ALWAYS_INLINE_LAMBDA { Transform::transform_input(d, t); },
            inputs_ + c * kBlock + i * kLanes, stride_of(input_));
      }
      const float* outputs[kOutputs][kOutputs];
      grad_.find_pixels<kOutputs, 0>(first + i, zeros_.data(), outputs);
      for (int64_t o = 0; o < grad_.channels; o += kLanes) {
        transform_tile<kInputs>(
            outputs, o,
            [](const auto& d, auto& t)
                ALWAYS_INLINE_LAMBDA { Transform::transform_gradient(d, t); },
            grads_ + o * kBlock + i * kLanes, stride_of(grad_));
      }
    }
  }

  // The products of `count` tiles, for one point and panel of 32 outputs.
  void add_products(int64_t task, int64_t count, bool begins) const {
    const OuterProducts add = outer_products();
    const int64_t point = task / panels(), panel = task % panels();
    const float* inputs = inputs_ + point * stride_of(input_);
    const float* grads = grads_ + point * stride_of(grad_) + panel * kColumns * kBlock;
    float* to = sums_ + task * input_.channels * kColumns;
    if (begins) std::fill_n(to, input_.channels * kColumns, 0.0f);
    for (int64_t c = 0; c < input_.channels; c += kLanes) {
      add(inputs + c * kBlock, grads, kBlock * kLanes, count, to + c * kColumns);
    }
  }

  // Transforms the sums of a panel back.
  ALWAYS_INLINE_LAMBDA void add_filters(int64_t panel) const {
    const int64_t panel_size = input_.channels * kColumns;
    const float* points[kInputs][kInputs];
    for (int y = 0; y < kInputs; ++y) {
      for (int x = 0; x < kInputs; ++x) {
        points[y][x] = sums_ + ((y * kInputs + x) * panels() + panel) * panel_size;
      }
    }
    float taps[kLanes][9][kLanes];  // [F][3 x 3][O]
    for (int64_t o = 0; o < kColumns; o += kLanes) {
      for (int64_t c = 0; c < input_.channels; c += kLanes) {
        for (int64_t i = 0; i < kLanes; ++i) {
          transform_tile<3>(
              points, (c + i) * kColumns + o,
              [](const auto& s, auto& g) ALWAYS_INLINE_LAMBDA { Transform::transform_sums(s, g); },
              taps[i][0], kLanes);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
          float* to = result_ + (panel * kColumns + o + lane) * 9 * input_.channels + c;
          for (int tap = 0; tap < 9; ++tap, to += input_.channels) {
            for (int i = 0; i < kLanes; ++i) to[i] += taps[i][tap][lane];
          }
        }
      }
    }
  }

  Tiles<kOutputs> input_, grad_;
  float* result_;
  std::vector<float> zeros_;
  Tensor memory_;
  float* inputs_;  // [points][F / 16][kBlock][16]
  float* grads_;   // [points][O / 16][kBlock][16]
  float* sums_;    // [points][O / 32][F][32]
};

Tensor conv3x3_weight_gradient(Tensor input, Tensor grad) {
  check_conv3x3_weight_gradient(input, grad);
  input = torch::stable::contiguous(input, MemoryFormat::ChannelsLast);
  grad = torch::stable::contiguous(grad, MemoryFormat::ChannelsLast);
  const int64_t images = input.size(0), height = input.size(2), width = input.size(3);
  const int64_t channels = input.size(1), out_channels = grad.size(1);
  Tensor result =
      lazy_zeros_cpu({out_channels, channels, 3, 3}, ScalarType::Float, sizeof(float), true);
  if (input.numel() == 0) return result;
  WeightGradient({input.const_data_ptr<float>(), images, height, width, channels},
                 {grad.const_data_ptr<float>(), images, height, width, out_channels},
                 result.mutable_data_ptr<float>())
      .run();
  return result;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("conv3x3_weight_gradient", TORCH_BOX(&maskrcnn::conv3x3_weight_gradient));
}
