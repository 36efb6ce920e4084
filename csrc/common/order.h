// The order of torch.max and torch.topk: NaN is larger than every number, and nothing is larger.
#pragma once

#include "host_device.h"

namespace maskrcnn {

template <typename T>
HOST_DEVICE bool exceeds(T a, T b) {
  return !(a <= b) & (b == b);
}

template <typename T>
HOST_DEVICE T larger(T a, T b) {
  return exceeds(a, b) ? a : b;
}

}  // namespace maskrcnn
