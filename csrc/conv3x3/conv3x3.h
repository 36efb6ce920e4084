// The transforms of Winograd's convolution F(m x m, 3 x 3), along one axis: m outputs are computed
// from m + 2 inputs with m + 2 multiplications (Lavin and Gray, Fast Algorithms for Convolutional
// Neural Networks, arXiv:1509.09308, Section 4). The points that the polynomials are evaluated at
// decide how much rounding errors grow; maskrcnn_scratch/ops/reference/conv3x3.py derives the
// matrices from them, and transforms the weights.
#pragma once

#include "../common/cpu_isa.h"

namespace maskrcnn {

// kOutputs outputs of an axis, computed from kInputs inputs.
template <int kOutputs>
struct Winograd;

// Points 0, 1, -1 and infinity.
template <>
struct Winograd<2> {
  static constexpr int kOutputs = 2, kInputs = 4;

  // t = B^T d
  template <typename V>
  ALWAYS_INLINE static void transform_input(const V (&d)[kInputs], V (&t)[kInputs]) {
    t[0] = d[2] - d[0];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }

  // y = A^T m
  template <typename V>
  ALWAYS_INLINE static void transform_output(const V (&m)[kInputs], V (&y)[kOutputs]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = (m[1] - m[2]) + m[3];
  }

  // t = A d, of the gradient of outputs
  template <typename V>
  ALWAYS_INLINE static void transform_gradient(const V (&d)[kOutputs], V (&t)[kInputs]) {
    t[0] = d[0];
    t[1] = d[0] + d[1];
    t[2] = d[0] - d[1];
    t[3] = d[1];
  }

  // g = G^T s, the gradient of a filter
  template <typename V>
  ALWAYS_INLINE static void transform_sums(const V (&s)[kInputs], V (&g)[3]) {
    const V middle = 0.5f * (s[1] + s[2]);
    g[0] = middle - s[0];
    g[1] = 0.5f * (s[1] - s[2]);
    g[2] = middle + s[3];
  }
};

// Points 0, 5/8, -5/8, 3/2, -3/2 and infinity: half the error of 0, 1, -1, 2, -2 and infinity.
template <>
struct Winograd<4> {
  static constexpr int kOutputs = 4, kInputs = 6;
  static constexpr float a = 0.625f, b = 1.5f;  // all products of up to four of them are exact
  static constexpr float aa = a * a, bb = b * b;

  // t = B^T d
  template <typename V>
  ALWAYS_INLINE static void transform_input(const V (&d)[kInputs], V (&t)[kInputs]) {
    const V even_a = d[4] - bb * d[2], odd_a = a * (d[3] - bb * d[1]);
    const V even_b = d[4] - aa * d[2], odd_b = b * (d[3] - aa * d[1]);
    t[0] = (d[4] - (aa + bb) * d[2]) + (aa * bb) * d[0];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = (d[5] - (aa + bb) * d[3]) + (aa * bb) * d[1];
  }

  // y = A^T m
  template <typename V>
  ALWAYS_INLINE static void transform_output(const V (&m)[kInputs], V (&y)[kOutputs]) {
    const V even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const V even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + (even_a + even_b);
    y[1] = a * odd_a + b * odd_b;
    y[2] = aa * even_a + bb * even_b;
    y[3] = ((aa * a) * odd_a + (bb * b) * odd_b) + m[5];
  }
};

}  // namespace maskrcnn
