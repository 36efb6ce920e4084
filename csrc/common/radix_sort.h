// Stable sorting by digits on the CPU: unlike comparisons, it has no branches to predict.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ordered_bits.h"

namespace maskrcnn {

// A value as ordered bits, and where it stands.
template <typename T>
struct Ranked {
  ordered_bits_t<T> bits;
  int64_t index;
};

// Sorts by descending bits; equal ones stay in their order. One pass per digit of 8 bits, from the
// last to the first (Knuth, The Art of Computer Programming, vol. 3, section 5.2.5). A digit that
// all have in common needs no pass.
template <typename T>
void radix_sort_descending(std::vector<Ranked<T>>& entries) {
  constexpr int kDigits = sizeof(ordered_bits_t<T>), kValues = 256;
  int64_t begin[kDigits][kValues] = {};  // at first: how often the digit has the value
  const auto digit = [](const Ranked<T>& entry, int d) { return uint8_t(~entry.bits >> (8 * d)); };
  for (const Ranked<T>& entry : entries) {
    for (int d = 0; d < kDigits; ++d) ++begin[d][digit(entry, d)];
  }
  std::vector<Ranked<T>> sorted(entries.size());
  for (int d = 0; d < kDigits; ++d) {
    if (entries.empty() || begin[d][digit(entries[0], d)] == int64_t(entries.size())) continue;
    int64_t sum = 0;
    for (int64_t& first : begin[d]) first = std::exchange(sum, sum + first);
    for (const Ranked<T>& entry : entries) sorted[begin[d][digit(entry, d)]++] = entry;
    entries.swap(sorted);
  }
}

}  // namespace maskrcnn
