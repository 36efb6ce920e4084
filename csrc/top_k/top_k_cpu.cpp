// Top-k on the CPU. Few values are ever compared with each other: two vectorised passes leave
// little more than k. The first lets them meet in heats; the k-th best winner of a heat is no
// better than the k-th best value, so the second only keeps the values that reach it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/checks.h"
#include "../common/cpu_isa.h"
#include "../common/dispatch.h"
#include "../common/order.h"
#include "../common/parallel.h"

namespace maskrcnn {
namespace {

constexpr int64_t kHeats = 4;   // for each of the k: few leave many values, many take time
constexpr int64_t kLanes = 64;  // looked at together

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

// The winner of each heat: values h, h + heats, h + 2 heats, ... meet in heat h.
template <typename T>
ALWAYS_INLINE void run_heats(const T* values, int64_t heats, int64_t rounds, T* winners) {
  std::copy_n(values, heats, winners);
  for (int64_t r = 1; r < rounds; ++r) {
    for (int64_t h = 0; h < heats; ++h) winners[h] = larger(values[r * heats + h], winners[h]);
  }
}

// A value that at least `k` of `count` values reach, and few more.
template <typename T>
T reached_by_k(const T* values, int64_t count, int64_t k) {
  const int64_t rounds = std::max<int64_t>(1, count / (kHeats * k)), heats = count / rounds;
  std::vector<T> winners(heats);
  with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { run_heats(values, heats, rounds, winners.data()); });
  std::nth_element(winners.begin(), winners.begin() + k - 1, winners.end(), exceeds<T>);
  return winners[k - 1];
}

// The entries whose values reach `least`.
template <typename T>
ALWAYS_INLINE std::vector<Entry<T>> reaching(T least, const T* values, int64_t count) {
  constexpr int64_t kBlock = 1024;
  std::vector<Entry<T>> entries;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t size = std::min(kBlock, count - first);
    uint8_t reaches[kBlock];
    for (int64_t i = 0; i < size; ++i) reaches[i] = !exceeds(least, values[first + i]);
    for (int64_t i = 0; i < size; ++i) {
      const void* next = std::memchr(reaches + i, 1, size - i);
      if (next == nullptr) break;
      i = static_cast<const uint8_t*>(next) - reaches;
      entries.push_back({values[first + i], first + i});
    }
  }
  return entries;
}

// Indices, plus `offset`, of the `k` best of `count` values, best first.
template <typename T>
void top_k(const T* values, int64_t count, int64_t k, int64_t offset, int64_t* indices) {
  if (k == 0) return;
  const T least = reached_by_k(values, count, k);
  std::vector<Entry<T>> entries;
  with_cpu_isa([&]() ALWAYS_INLINE_LAMBDA { entries = reaching(least, values, count); });
  std::nth_element(entries.begin(), entries.begin() + k - 1, entries.end());
  std::sort(entries.begin(), entries.begin() + k);
  for (int64_t i = 0; i < k; ++i) indices[i] = entries[i].index + offset;
}

Tensor top_k_of_levels(Tensor values, std::vector<int64_t> level_sizes, int64_t k) {
  check_dim(values, 2, "values", "[N, A]");
  CHECK_ARGUMENT(k >= 0, "k must not be negative, it is ", k);
  const int64_t images = values.size(0), width = values.size(1);
  int64_t sum = 0;
  for (const int64_t size : level_sizes) {
    CHECK_ARGUMENT(size >= 0, "level_sizes must not be negative, one is ", size);
    CHECK_ARGUMENT(!__builtin_add_overflow(sum, size, &sum),
                   "level_sizes add up to 2^63 or more, but values is ", shape_of(values));
  }
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
