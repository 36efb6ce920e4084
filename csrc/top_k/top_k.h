// Which of equal values comes first, on every device.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace maskrcnn {

// Ties, frequent in bfloat16, are broken by the lower scattered(index). The lower index would
// select boxes at the top of the image only. Fibonacci hashing (Knuth, The Art of Computer
// Programming, vol. 3, section 6.4): the indices whose hash is below some bound lie evenly spaced.
// Different indices have different hashes, because the factor is odd.
HOST_DEVICE uint64_t scattered(int64_t index) {
  return uint64_t(index) * 0x9E3779B97F4A7C15u;
}

}  // namespace maskrcnn
