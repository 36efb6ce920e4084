// The order of torch.max and torch.topk: NaN is larger than every number, and nothing is larger.
#pragma once

#include "cpu_isa.h"

namespace maskrcnn {

template <typename T>
ALWAYS_INLINE bool exceeds(T a, T b) {
  return !(a <= b) & (b == b);
}

template <typename T>
ALWAYS_INLINE T larger(T a, T b) {
  return exceeds(a, b) ? a : b;
}

}  // namespace maskrcnn
