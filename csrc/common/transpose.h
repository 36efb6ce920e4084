// Rows to columns, block by block so that both sides stay in the cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu_isa.h"

namespace maskrcnn {

// A block of 4 x 4 floats in registers of 16 bytes, which every CPU has.
ALWAYS_INLINE void transpose_4x4(const float* from,
                                 int64_t from_stride,
                                 float* to,
                                 int64_t to_stride) {
  typedef float Row __attribute__((vector_size(16)));
  Row a, b, c, d;
  std::memcpy(&a, from, 16);
  std::memcpy(&b, from + from_stride, 16);
  std::memcpy(&c, from + 2 * from_stride, 16);
  std::memcpy(&d, from + 3 * from_stride, 16);
  const Row ab01 = __builtin_shufflevector(a, b, 0, 4, 1, 5);  // a0 b0 a1 b1
  const Row cd01 = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Row ab23 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Row cd23 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Row columns[4] = {__builtin_shufflevector(ab01, cd01, 0, 1, 4, 5),
                          __builtin_shufflevector(ab01, cd01, 2, 3, 6, 7),
                          __builtin_shufflevector(ab23, cd23, 0, 1, 4, 5),
                          __builtin_shufflevector(ab23, cd23, 2, 3, 6, 7)};
  for (int64_t i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &columns[i], 16);
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
        if (r1 - r0 == 4 && c1 - c0 == 4) {
          transpose_4x4(from + r0 * from_stride + c0, from_stride, to + c0 * to_stride + r0,
                        to_stride);
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
