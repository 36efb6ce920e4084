// Matrix transpose, block by block, so that both matrices stay in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "cpu_isa.h"

namespace maskrcnn {

// A block of 4 x 4 floats by SSE; false, with nothing done, where the CPU has no SSE.
ALWAYS_INLINE bool transpose_4x4(const float* from,
                                 int64_t from_stride,
                                 float* to,
                                 int64_t to_stride) {
#ifdef __SSE__
  __m128 a = _mm_loadu_ps(from);
  __m128 b = _mm_loadu_ps(from + from_stride);
  __m128 c = _mm_loadu_ps(from + 2 * from_stride);
  __m128 d = _mm_loadu_ps(from + 3 * from_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_stride, b);
  _mm_storeu_ps(to + 2 * to_stride, c);
  _mm_storeu_ps(to + 3 * to_stride, d);
  return true;
#else
  return false;
#endif
}

// to[c, r] = from[r, c], converted; the strides are the elements from one row to the next.
template <typename From, typename To>
ALWAYS_INLINE void transpose(const From* __restrict from,
                             int64_t rows,
                             int64_t columns,
                             int64_t from_stride,
                             To* __restrict to,
                             int64_t to_stride) {
  constexpr int64_t kBlock = std::is_same_v<From, float> && std::is_same_v<To, float> ? 4 : 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < columns; c0 += kBlock) {
      const int64_t r1 = std::min(r0 + kBlock, rows), c1 = std::min(c0 + kBlock, columns);
      if constexpr (kBlock == 4) {
        const float* block = from + r0 * from_stride + c0;
        if (r1 - r0 == 4 && c1 - c0 == 4 &&
            transpose_4x4(block, from_stride, to + c0 * to_stride + r0, to_stride)) {
          continue;
        }
      }
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) to[c * to_stride + r] = To(from[r * from_stride + c]);
      }
    }
  }
}

}  // namespace maskrcnn
