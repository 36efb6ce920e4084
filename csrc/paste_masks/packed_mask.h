// A mask at one bit a pixel, in the order in which COCO counts runs: column by column, a column in
// 64-bit words from the top down, the lowest bit of a word on top. Bits below the image are 0.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace maskrcnn {

constexpr int64_t kWordPixels = 64;

HOST_DEVICE int64_t words_per_column(int64_t height) {
  return (height + kWordPixels - 1) / kWordPixels;
}

}  // namespace maskrcnn
