// Sums of outer products, for the weight gradient of a Winograd convolution:
//
//   out[r][c] += sum over i of a[i][r] * b[c / 16][i][c % 16]
//
//   a    [k][16]
//   b    two panels [k][16], `panel` apart
//   out  [16][32]
//
// The sum runs over i in order, in chains of kChain terms; fused with AVX2 and AVX-512 (which
// therefore have the same bits), unfused elsewhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../common/cpu_isa.h"
#include "matrix_product.h"

namespace maskrcnn {

using OuterProducts =
    void (*)(const float* a, const float* b, int64_t panel, int64_t k, float* out);

inline void outer_products_baseline(
    const float* a, const float* b, int64_t panel, int64_t k, float* out) {
  typedef float Quad __attribute__((vector_size(16)));
  constexpr int kHeight = 4;  // rows of two vectors: 8 of 16 registers hold sums
  for (int64_t first = 0; first < k; first += kChain) {
    const int64_t last = std::min(first + kChain, k);
    for (int r0 = 0; r0 < kLanes; r0 += kHeight) {
      for (int c0 = 0; c0 < kColumns; c0 += 8) {
        const float* columns = b + c0 / kLanes * panel + c0 % kLanes;
        Quad low[kHeight] = {}, high[kHeight] = {};
        for (int64_t i = first; i < last; ++i) {
          Quad values[2];
          std::memcpy(values, columns + i * kLanes, sizeof(values));
#pragma GCC unroll 4
          for (int r = 0; r < kHeight; ++r) {
            const float factor = a[i * kLanes + r0 + r];
            low[r] += factor * values[0];
            high[r] += factor * values[1];
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kHeight; ++r) {
          Quad sums[2];
          std::memcpy(sums, out + (r0 + r) * kColumns + c0, sizeof(sums));
          sums[0] += low[r];
          sums[1] += high[r];
          std::memcpy(out + (r0 + r) * kColumns + c0, sums, sizeof(sums));
        }
      }
    }
  }
}

#ifdef __x86_64__
__attribute__((target("avx2,fma"))) inline void outer_products_avx2(
    const float* a, const float* b, int64_t panel, int64_t k, float* out) {
  constexpr int kWidth = 2, kHeight = 4;  // 8 of 16 registers hold sums
  for (int64_t first = 0; first < k; first += kChain) {
    const int64_t last = std::min(first + kChain, k);
    for (int r0 = 0; r0 < kLanes; r0 += kHeight) {
      for (int c0 = 0; c0 < kColumns; c0 += kWidth * 8) {
        __m256 sums[kHeight][kWidth];
        for (int r = 0; r < kHeight; ++r) {
          for (int c = 0; c < kWidth; ++c) sums[r][c] = _mm256_setzero_ps();
        }
        const float* rows = a + first * kLanes + r0;
        const float* columns = b + c0 / kLanes * panel + first * kLanes;
#pragma GCC unroll 4
        for (int64_t i = first; i < last; ++i, rows += kLanes, columns += kLanes) {
          __m256 values[kWidth];
          for (int c = 0; c < kWidth; ++c) values[c] = _mm256_loadu_ps(columns + c * 8);
          for (int r = 0; r < kHeight; ++r) {
            const __m256 factor = _mm256_broadcast_ss(rows + r);
            for (int c = 0; c < kWidth; ++c) {
              sums[r][c] = _mm256_fmadd_ps(factor, values[c], sums[r][c]);
            }
          }
        }
        for (int r = 0; r < kHeight; ++r) {
          for (int c = 0; c < kWidth; ++c) {
            float* to = out + (r0 + r) * kColumns + c0 + c * 8;
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums[r][c]));
          }
        }
      }
    }
  }
}

__attribute__((target("avx512f"))) inline void outer_products_avx512(
    const float* a, const float* b, int64_t panel, int64_t k, float* out) {
  constexpr int kHeight = 8;
  for (int r0 = 0; r0 < kLanes; r0 += kHeight, out += kHeight * kColumns) {
    for (int r = 0; r < kHeight; ++r) {  // arrives while the products are summed
      _mm_prefetch(reinterpret_cast<const char*>(out + r * kColumns), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(out + r * kColumns + 16), _MM_HINT_T0);
    }
    for (int64_t first = 0; first < k; first += kChain) {
      const int64_t last = std::min(first + kChain, k);
      __m512 sums[kHeight][2];  // 16 of 32 registers
      for (int r = 0; r < kHeight; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
      const float* rows = a + first * kLanes + r0;
      const float* columns = b + first * kLanes;
#pragma GCC unroll 4
      for (int64_t i = first; i < last; ++i, rows += kLanes, columns += kLanes) {
        const __m512 low = _mm512_loadu_ps(columns), high = _mm512_loadu_ps(columns + panel);
        for (int r = 0; r < kHeight; ++r) {
          const __m512 factor = _mm512_set1_ps(rows[r]);
          sums[r][0] = _mm512_fmadd_ps(factor, low, sums[r][0]);
          sums[r][1] = _mm512_fmadd_ps(factor, high, sums[r][1]);
        }
      }
      for (int r = 0; r < kHeight; ++r) {
        float* to = out + r * kColumns;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sums[r][0]));
        _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), sums[r][1]));
      }
    }
  }
}
#endif

// The best for this CPU.
inline OuterProducts outer_products() {
#ifdef __x86_64__
  if (cpu_isa() == Isa::kAvx512) return outer_products_avx512;
  if (cpu_isa() == Isa::kAvx2 && __builtin_cpu_supports("fma")) return outer_products_avx2;
#endif
  return outer_products_baseline;
}

}  // namespace maskrcnn
