// A mask with one bit per pixel, in the order of COCO's runs: column after column, each in 64-bit
// words from top to bottom, the lowest bit of a word at the top. Bits below the image are 0.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace maskrcnn {

constexpr int64_t kWordPixels = 64;

HOST_DEVICE int64_t words_per_column(int64_t height) {
  return (height + kWordPixels - 1) / kWordPixels;
}

}  // namespace maskrcnn
