// Top-k on the CPU. Few values are ever compared with each other: they first meet in heats, whose
// winners need one vectorised pass. The k-th best winner is no better than the k-th best value, so
// the k best are among the values that reach it, which are little more than k.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../common/checks.h"
#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "../common/parallel.h"

namespace maskrcnn {
namespace {

constexpr int64_t kLanes = 16;              // heats side by side, in a vector ...
constexpr int64_t kRows = 16;               // ... of this many values each
constexpr int64_t kBlock = kLanes * kRows;  // values

template <typename T>
struct Entry {
  T value;
  int64_t index;

  // Better entries come first. Equals, of which bfloat16 makes many, are taken from all over the
  // image: the first of them would all lie at its top.
  bool operator<(const Entry& other) const {
    if (exceeds(value, other.value)) return true;
    return !exceeds(other.value, value) && scattered(index) < scattered(other.index);
  }

  // Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, section 6.4): the numbers of
  // neighbours lie far apart, and those below any bound lie evenly.
  static uint64_t scattered(int64_t index) { return uint64_t(index) * 0x9E3779B97F4A7C15u; }
};

// The winner of each heat: heat l of block b has values[b * kBlock + r * kLanes + l], r < kRows.
template <typename T>
ALWAYS_INLINE void run_heats(const T* values, int64_t blocks, T* winners) {
  for (int64_t b = 0; b < blocks; ++b) {
    const T* block = values + b * kBlock;
    T best[kLanes];
    std::copy_n(block, kLanes, best);
    for (int64_t r = 1; r < kRows; ++r) {
      for (int64_t l = 0; l < kLanes; ++l) best[l] = larger(block[r * kLanes + l], best[l]);
    }
    std::copy_n(best, kLanes, winners + b * kLanes);
  }
}

// Entries among which the `k` best of `count` values are.
template <typename T>
std::vector<Entry<T>> finalists(const T* values, int64_t count, int64_t k) {
  const int64_t blocks = count / kBlock, heats = blocks * kLanes;
  std::vector<Entry<T>> entries;
  const auto enter = [&](int64_t i) { entries.push_back({values[i], i}); };
  if (heats <= k) {
    for (int64_t i = 0; i < count; ++i) enter(i);
    return entries;
  }
  std::vector<T> winners(heats);
  with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { run_heats(values, blocks, winners.data()); });
  std::vector<T> sorted = winners;
  std::nth_element(sorted.begin(), sorted.begin() + k - 1, sorted.end(), exceeds<T>);
  const T least = sorted[k - 1];
  for (int64_t heat = 0; heat < heats; ++heat) {
    if (exceeds(least, winners[heat])) continue;
    const int64_t first = heat / kLanes * kBlock + heat % kLanes;
    for (int64_t r = 0; r < kRows; ++r) {
      if (!exceeds(least, values[first + r * kLanes])) enter(first + r * kLanes);
    }
  }
  for (int64_t i = blocks * kBlock; i < count; ++i) enter(i);
  return entries;
}

// Indices, plus `offset`, of the `k` best of `count` values, best first.
template <typename T>
void top_k(const T* values, int64_t count, int64_t k, int64_t offset, int64_t* indices) {
  if (k == 0) return;
  std::vector<Entry<T>> entries = finalists(values, count, k);
  std::nth_element(entries.begin(), entries.begin() + k - 1, entries.end());
  std::sort(entries.begin(), entries.begin() + k);
  for (int64_t i = 0; i < k; ++i) indices[i] = entries[i].index + offset;
}

Tensor top_k_of_levels(Tensor values, std::vector<int64_t> level_sizes, int64_t k) {
  check_dim(values, 2, "values", "[N, A]");
  CHECK_ARGUMENT(k >= 0, "k must not be negative, it is ", k);
  for (const int64_t size : level_sizes) {
    CHECK_ARGUMENT(size >= 0, "level_sizes must not be negative, one is ", size);
  }
  const int64_t images = values.size(0), width = values.size(1);
  const int64_t sum = std::accumulate(level_sizes.begin(), level_sizes.end(), int64_t(0));
  CHECK_ARGUMENT(sum == width, "level_sizes add up to ", sum, ", but values is ", shape_of(values));
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
