// The products of a Winograd convolution: small matrix products with a fixed layout.
//
//   a    [K/16][12][16]  12 rows of K columns, 16 columns side by side
//   b    [K][32]
//   out  12 rows of 32 columns, `out_stride` apart
//
// Each sum runs over K in order, fused with AVX2 and AVX-512 (which therefore have the same bits),
// unfused elsewhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../common/cpu_isa.h"

namespace maskrcnn {

constexpr int kRows = 12;     // of a block of a
constexpr int kColumns = 32;  // of a block of b
constexpr int kLanes = 16;    // columns of a that lie side by side

// Terms of a sum that are added one after the other; such partial sums are then added up. Rounding
// errors grow with the length of a chain of additions.
constexpr int64_t kChain = 64;

using MatrixProduct =
    void (*)(const float* a, const float* b, int64_t k, float* out, int64_t out_stride);

inline void matrix_product_baseline(
    const float* a, const float* b, int64_t k, float* out, int64_t out_stride) {
  typedef float Quad __attribute__((vector_size(16)));
  constexpr int kHeight = 4;  // rows of two vectors: 8 of 16 registers hold sums
  for (int64_t first = 0; first < k; first += kChain) {
    const int64_t last = std::min(first + kChain, k);
    for (int r0 = 0; r0 < kRows; r0 += kHeight) {
      for (int c0 = 0; c0 < kColumns; c0 += 8) {
        Quad low[kHeight] = {}, high[kHeight] = {};
        for (int64_t i = first; i < last; ++i) {
          const float* column = a + i / kLanes * (kRows * kLanes) + i % kLanes;
          Quad values[2];
          std::memcpy(values, b + i * kColumns + c0, sizeof(values));
#pragma GCC unroll 4
          for (int r = 0; r < kHeight; ++r) {
            const float factor = column[(r0 + r) * kLanes];
            low[r] += factor * values[0];
            high[r] += factor * values[1];
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kHeight; ++r) {
          float* to = out + (r0 + r) * out_stride + c0;
          Quad sums[2] = {};
          if (first) std::memcpy(sums, to, sizeof(sums));
          sums[0] += low[r];
          sums[1] += high[r];
          std::memcpy(to, sums, sizeof(sums));
        }
      }
    }
  }
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) inline void matrix_product_avx2(
    const float* a, const float* b, int64_t k, float* out, int64_t out_stride) {
  constexpr int kWidth = 2, kHeight = 6;  // 12 of 16 registers hold sums
  for (int64_t first = 0; first < k; first += kChain) {
    const int64_t last = std::min(first + kChain, k);
    for (int r0 = 0; r0 < kRows; r0 += kHeight) {
      for (int c0 = 0; c0 < kColumns; c0 += kWidth * 8) {
        __m256 sums[kHeight][kWidth];
        for (int r = 0; r < kHeight; ++r) {
          for (int c = 0; c < kWidth; ++c) sums[r][c] = _mm256_setzero_ps();
        }
        const float* columns = a + first * kRows + r0 * kLanes;
        const float* row = b + first * kColumns + c0;
        for (int64_t i = first; i < last; i += kLanes, columns += kRows * kLanes) {
#pragma GCC unroll 4
          for (int lane = 0; lane < kLanes; ++lane, row += kColumns) {
            __m256 values[kWidth];
            for (int c = 0; c < kWidth; ++c) values[c] = _mm256_loadu_ps(row + c * 8);
            for (int r = 0; r < kHeight; ++r) {
              const __m256 factor = _mm256_broadcast_ss(columns + r * kLanes + lane);
              for (int c = 0; c < kWidth; ++c) {
                sums[r][c] = _mm256_fmadd_ps(factor, values[c], sums[r][c]);
              }
            }
          }
        }
        for (int r = 0; r < kHeight; ++r) {
          for (int c = 0; c < kWidth; ++c) {
            float* to = out + (r0 + r) * out_stride + c0 + c * 8;
            if (first) sums[r][c] = _mm256_add_ps(_mm256_loadu_ps(to), sums[r][c]);
            _mm256_storeu_ps(to, sums[r][c]);
          }
        }
      }
    }
  }
}

__attribute__((target("avx512f"))) inline void matrix_product_avx512(
    const float* a, const float* b, int64_t k, float* out, int64_t out_stride) {
  for (int64_t first = 0; first < k; first += kChain) {
    const int64_t last = std::min(first + kChain, k);
    __m512 sums[kRows][2];  // 24 of 32 registers
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int64_t i = first; i < last; i += kLanes, a += kRows * kLanes) {
#pragma GCC unroll 4
      for (int lane = 0; lane < kLanes; ++lane, b += kColumns) {
        const __m512 low = _mm512_loadu_ps(b), high = _mm512_loadu_ps(b + 16);
        for (int r = 0; r < kRows; ++r) {
          const __m512 factor = _mm512_set1_ps(a[r * kLanes + lane]);
          sums[r][0] = _mm512_fmadd_ps(factor, low, sums[r][0]);
          sums[r][1] = _mm512_fmadd_ps(factor, high, sums[r][1]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      float* to = out + r * out_stride;
      if (first) {
        sums[r][0] = _mm512_add_ps(_mm512_loadu_ps(to), sums[r][0]);
        sums[r][1] = _mm512_add_ps(_mm512_loadu_ps(to + 16), sums[r][1]);
      }
      _mm512_storeu_ps(to, sums[r][0]);
      _mm512_storeu_ps(to + 16, sums[r][1]);
    }
  }
}
#endif

// The best for this CPU.
inline MatrixProduct matrix_product() {
#ifdef __x86_64__
  if (cpu_isa() == Isa::kAvx512) return matrix_product_avx512;
  if (cpu_isa() == Isa::kAvx2 && __builtin_cpu_supports("fma")) return matrix_product_avx2;
#endif
  return matrix_product_baseline;
}

}  // namespace maskrcnn
