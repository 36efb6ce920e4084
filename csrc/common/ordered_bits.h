// Floating-point values as unsigned integers in the same order, for atomics, digits and sorting.
#pragma once

#include <cstring>

#include "host_device.h"

namespace maskrcnn {

template <typename T>
struct OrderedBits;
template <>
struct OrderedBits<float> {
  using type = unsigned;
};
template <>
struct OrderedBits<double> {
  using type = unsigned long long;
};
template <typename T>
using ordered_bits_t = typename OrderedBits<T>::type;

// The order of exceeds() (order.h): a NaN gives all ones, the largest; -0 and 0 give the same. The
// bits of positive numbers are in their order already and get the highest bit; those of negative
// ones are in reverse, and inverted. No value gives 0.
// Example with 4 bits, a sign, two bits of exponent and one of mantissa:
//   value         -inf  -1.5   -1    0     1    1.5   inf   NaN
//   bits          1110  1011  1010  0000  0010  0011  0110  0111
//   ordered bits  0001  0100  0101  1000  1010  1011  1110  1111
template <typename T>
HOST_DEVICE ordered_bits_t<T> ordered_bits(T value) {
  using U = ordered_bits_t<T>;
  constexpr U kSign = U(1) << (8 * sizeof(U) - 1);
  if (value != value) return ~U(0);
  value += T(0);  // -0 + 0 = 0
  U bits;
  memcpy(&bits, &value, sizeof(U));
  return bits & kSign ? ~bits : bits | kSign;
}

// The value of ordered bits; the sign of a zero and the kind of a NaN are lost.
template <typename T>
HOST_DEVICE T value_of(ordered_bits_t<T> ordered) {
  using U = ordered_bits_t<T>;
  constexpr U kSign = U(1) << (8 * sizeof(U) - 1);
  const U bits = ordered & kSign ? ordered & ~kSign : ~ordered;
  T value;
  memcpy(&value, &bits, sizeof(U));
  return value;
}

}  // namespace maskrcnn
