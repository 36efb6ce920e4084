// Top-k on the CPU, in two vectorised passes over the values.
//
// The first pass over blocks finds a lower bound of the k-th largest value: values are divided into
// about 4 k blocks, and the largest of each block is taken. At least k values reach the k-th
// largest of these maxima, namely k of the maxima themselves. The second pass collects the values
// that reach the bound, little more than k where large values are spread evenly. Only these are
// sorted.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "../common/parallel.h"
#include "../common/radix_sort.h"
#include "arguments.h"
#include "top_k.h"

namespace maskrcnn {
namespace {

// Blocks for each of the k values. Fewer give a lower bound, and more values to sort; more make
// longer work of the maxima.
constexpr int64_t kBlocksPerValue = 4;

// The largest value of each block. Block b has the values b, b + blocks, b + 2 blocks, ..., so that
// neighbouring blocks are neighbouring lanes of a vector.
template <typename T>
ALWAYS_INLINE void block_maxima(const T* values, int64_t blocks, int64_t rounds, T* maxima) {
  std::copy_n(values, blocks, maxima);
  for (int64_t r = 1; r < rounds; ++r) {
    for (int64_t b = 0; b < blocks; ++b) maxima[b] = larger(values[r * blocks + b], maxima[b]);
  }
}

// The k-th largest of `count` ordered bits, bit by bit from the highest: a bit is set if at least k
// of them reach the result with it. Each step is a vectorised pass over them, without branches.
template <typename U>
ALWAYS_INLINE U kth_largest(const U* bits, int64_t count, int64_t k) {
  constexpr int64_t kBlock = 1 << 16;  // counted in the type of the bits, as vectors do
  U kth = 0;
  for (U bit = ~(~U(0) >> 1); bit != 0; bit >>= 1) {
    int64_t reaching = 0;
    for (int64_t first = 0; first < count; first += kBlock) {
      const int64_t end = std::min(first + kBlock, count);
      U in_block = 0;
      for (int64_t i = first; i < end; ++i) in_block += bits[i] >= (kth | bit);
      reaching += in_block;
    }
    if (reaching >= k) kth |= bit;
  }
  return kth;
}

// A lower bound of the k-th largest of `count` values: at least k values reach it, and few more.
template <typename T>
ALWAYS_INLINE T lower_bound_of_kth(const T* values, int64_t count, int64_t k) {
  const int64_t rounds = std::max<int64_t>(1, count / (kBlocksPerValue * k)),
                blocks = count / rounds;
  std::vector<T> maxima(blocks);
  block_maxima(values, blocks, rounds, maxima.data());
  std::vector<ordered_bits_t<T>> bits(blocks);
  for (int64_t b = 0; b < blocks; ++b) bits[b] = ordered_bits(maxima[b]);
  return value_of<T>(kth_largest(bits.data(), blocks, k));
}

// The values that reach `least`, of which there are k or more.
template <typename T>
ALWAYS_INLINE std::vector<Ranked<T>> reaching(T least, const T* values, int64_t count, int64_t k) {
  constexpr int64_t kBlock = 1024;
  std::vector<Ranked<T>> entries;
  entries.reserve(k);
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t size = std::min(kBlock, count - first);
    uint8_t reaches[kBlock];
    for (int64_t i = 0; i < size; ++i) reaches[i] = !exceeds(least, values[first + i]);
    for (int64_t i = 0; i < size; ++i) {
      const void* next = std::memchr(reaches + i, 1, size - i);
      if (next == nullptr) break;
      i = static_cast<const uint8_t*>(next) - reaches;
      entries.push_back({ordered_bits(values[first + i]), first + i});
    }
  }
  return entries;
}

// Brings each run of equal values among the first k of sorted `entries` into the order of ties.
template <typename T>
void order_ties(std::vector<Ranked<T>>& entries, int64_t k) {
  const auto before = [](const Ranked<T>& a, const Ranked<T>& b) {
    return scattered(a.index) < scattered(b.index);
  };
  const auto selected = entries.begin() + k;
  for (auto run = entries.begin(); run < selected;) {
    const auto end = std::find_if(run + 1, entries.end(),
                                  [&](const Ranked<T>& entry) { return entry.bits != run->bits; });
    if (end > selected) std::nth_element(run, selected, end, before);
    std::sort(run, std::min(end, selected), before);
    run = end;
  }
}

// Indices, plus `offset`, of the `k` largest of `count` values, by descending value.
template <typename T>
void top_k(const T* values, int64_t count, int64_t k, int64_t offset, int64_t* indices) {
  if (k == 0) return;
  std::vector<Ranked<T>> entries;
  with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA {
    entries = reaching(lower_bound_of_kth(values, count, k), values, count, k);
  });
  radix_sort_descending(entries);
  order_ties(entries, k);
  for (int64_t i = 0; i < k; ++i) indices[i] = entries[i].index + offset;
}

Tensor top_k_of_levels(Tensor values, std::vector<int64_t> level_sizes, int64_t k) {
  check_top_k_arguments(values, level_sizes, k);
  const int64_t images = values.size(0), width = values.size(1);
  values = torch::stable::contiguous(values);

  const int64_t levels = level_sizes.size();
  std::vector<int64_t> begin(levels + 1), out_begin(levels + 1);
  for (int64_t l = 0; l < levels; ++l) {
    begin[l + 1] = begin[l] + level_sizes[l];
    out_begin[l + 1] = out_begin[l] + std::min(k, level_sizes[l]);
  }
  const int64_t found = out_begin[levels];
  Tensor indices = torch::stable::new_empty(values, {images, found}, ScalarType::Long);
  int64_t* out = indices.mutable_data_ptr<int64_t>();
  dispatch_float_double(values.scalar_type(), "values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* data = values.const_data_ptr<T>();
    parallel_tasks(images * levels, [&](int64_t task) {
      const int64_t n = task / levels, l = task % levels;
      top_k(data + n * width + begin[l], level_sizes[l], out_begin[l + 1] - out_begin[l], begin[l],
            out + n * found + out_begin[l]);
    });
  });
  return indices;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CPU, library) {
  library.impl("top_k_of_levels", TORCH_BOX(&maskrcnn::top_k_of_levels));
}
