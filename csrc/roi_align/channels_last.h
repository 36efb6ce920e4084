// Feature maps from contiguous to channels-last, and back.
#pragma once

#include "../common/host_memory.h"
#include "../common/parallel.h"
#include "../common/transpose.h"

namespace maskrcnn {

// [N, F, H, W] of type From to type To: contiguous to channels-last, or channels-last to
// contiguous.
template <typename From, typename To>
Tensor change_format(const Tensor& features, ScalarType dtype, bool to_channels_last) {
  constexpr int64_t kPixels = 1024;  // per task
  const int64_t images = features.size(0), channels = features.size(1);
  const int64_t pixels = features.size(2) * features.size(3);
  Tensor result =
      empty_cpu({images, channels, features.size(2), features.size(3)}, dtype, to_channels_last);
  if (result.numel() == 0) return result;
  const From* from = features.const_data_ptr<From>();
  To* to = result.mutable_data_ptr<To>();
  const int64_t blocks = (pixels + kPixels - 1) / kPixels;
  parallel_tasks(images * blocks, [&](int64_t task) {
    const int64_t image = task / blocks * channels * pixels, first = task % blocks * kPixels;
    const int64_t count = std::min(kPixels, pixels - first);
    with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
      if (to_channels_last) {
        transpose(from + image + first, channels, count, pixels, to + image + first * channels,
                  channels);
      } else {
        transpose(from + image + first * channels, count, channels, channels, to + image + first,
                  pixels);
      }
    });
  });
  return result;
}

}  // namespace maskrcnn
