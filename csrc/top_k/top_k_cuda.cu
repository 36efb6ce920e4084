// Top-k of each pyramid level on CUDA: a radix select, then ranks by counting.
//
// A value is seen as a number of kDigits digits of 12 bits each, first digit first: the bits of the
// value in an order-preserving form, followed by bits that say which of equal values comes first.
//
//   count_digit   once per digit: of the values that begin with the same digits as the k-th
//                 largest, how many have which next digit. The counts give the next digit of the
//                 k-th largest
//   collect       list the values whose digits are not below those of the k-th largest
//   rank          of those, count how many come before each; that is its position in the result
//
// The list has k entries, and those that share all digits with the k-th largest, so that few are
// too many. Nothing is read by the host, so nothing synchronises.
//
// Example with digits of one decimal: the 3 largest of 57 12 55 31 59 58.
//   digit 0: counts of 1: 1, of 3: 1, of 5: 4. At least 3 values begin with a digit >= 5: the
//            third-largest begins with 5. None is above, so 3 are wanted among those.
//   digit 1: counts of 5: 1, of 7: 1, of 8: 1, of 9: 1. At least 3 have a digit >= 7: it is 57.
//   collect: 57 59 58. rank: 2 0 1, so the result is 59 58 57.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/block_items.cuh"
#include "../common/cuda_launch.cuh"
#include "../common/dispatch.h"
#include "../common/ordered_bits.h"
#include "arguments.h"
#include "top_k.h"

namespace maskrcnn {
namespace {

constexpr int kMaxLevels = 16;  // passed as kernel arguments
constexpr int kMaxLevelSize = 1 << 30;

// 4,096 counts take 16 KiB of shared memory, and three digits hold a float32 with 4 bits to spare.
// 11 bits would leave one bit to spare, 8 bits take five launches.
constexpr int kDigitBits = 12;
constexpr int kBins = 1 << kDigitBits;

// Digits: the bits of the value, and at least 4 of its tie-breaker. Where all values are equal, as
// in a network that predicts nothing yet, the list is then a sixteenth of them, not all.
template <typename T>
constexpr int kDigits = (8 * int(sizeof(T)) + 4 + kDigitBits - 1) / kDigitBits;

// Values per thread of count_digit and collect. Estimate: enough that clearing the counts costs
// little, and few enough that the 268,569 anchors of 800 x 1344 still make 67 blocks.
constexpr int kValuesPerThread = 16;
constexpr int64_t kSlice = int64_t(kThreads) * kValuesPerThread;

// A value on its way into the result, and its index in the level.
template <typename T>
struct Entry {
  ordered_bits_t<T> bits;
  int index;

  __device__ bool comes_before(const Entry& other) const {
    if (bits != other.bits) return bits > other.bits;
    return scattered(index) < scattered(other.index);
  }

  // The digit at a position; digits of ties count down, because the lower hash comes first.
  __device__ int digit(int position) const {
    const int below = 8 * int(sizeof(T)) - kDigitBits * (position + 1);  // bits of the value
    if (below >= 0) return int(bits >> below) & (kBins - 1);
    return int(bits << -below | ordered_bits_t<T>(~scattered(index) >> (64 + below))) & (kBins - 1);
  }

  // The first digits, all but the last, as a number.
  __device__ ordered_bits_t<T> first_digits(int count) const {
    return count == 0 ? 0 : bits >> (8 * int(sizeof(T)) - kDigitBits * count);
  }
};

// What is known about the k-th largest value of a level.
struct Prefix {
  int64_t digits;  // its first digits, as a number
  int64_t wanted;  // its position among the values that share them, counted from 1
};

// Shapes: N images, L levels of A_l values, A in all. A "row" is a level of an image: N * L of
// them.
template <typename T>
struct TopKArguments {
  const T* values;                              // [N, A]
  int64_t levels, width, found;                 // L, A; results per image
  int64_t begin[kMaxLevels], size[kMaxLevels];  // of each level
  int64_t k[kMaxLevels], out_begin[kMaxLevels];
  int* counts;        // [N * L, kDigits, kBins], zeros
  int* collected;     // [N * L], zeros
  Prefix* prefixes;   // [N * L, kDigits]: with the first 0, 1, 2, ... digits
  Entry<T>* entries;  // [N, A]: of each row, from its begin on
  int64_t* indices;   // [N, found]
  int64_t images;

  HOST_DEVICE int64_t slices(int64_t level) const {
    return k[level] > 0 ? ceil_div<int64_t>(size[level], kSlice) : 0;
  }
  HOST_DEVICE int64_t items() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < levels; ++l) sum += slices(l);
    return images * sum;
  }
};

// One item of work of count_digit and collect: kSlice values of one row.
template <typename T>
struct Slice {
  int64_t row, level, first;
  const T* values;  // of the row

  __device__ Slice(const TopKArguments<T>& a, int64_t item) {
    const int64_t per_image = a.items() / a.images;
    const int64_t image = item / per_image;
    item %= per_image;
    for (level = 0; item >= a.slices(level); ++level) item -= a.slices(level);
    row = image * a.levels + level;
    first = item * kSlice;
    values = a.values + image * a.width + a.begin[level];
  }

  // Calls f(entry, exists) kValuesPerThread times, in all threads alike.
  template <typename F>
  __device__ void for_each(const TopKArguments<T>& a, const F& f) const {
    for (int n = 0; n < kValuesPerThread; ++n) {
      const int64_t i = first + int64_t(n) * kThreads + threadIdx.x;
      const bool exists = i < a.size[level];
      f(Entry<T>{exists ? ordered_bits(values[i]) : 0, int(i)}, exists);
    }
  }
};

// In shared memory.
struct Search {
  int sums[kThreads];
  int digit, above;
};

// The digit of the value that is the `wanted`-th largest of those that were counted, and how many
// have a larger digit.
//
// Mapping: thread -> kBins / kThreads neighbouring digits, which it sums up. Each thread adds the
// sums above its own; in one thread the wanted one is passed, and it goes through its digits from
// the largest on. All threads of the block call it; it has two barriers.
__device__ void find_digit(const int* counts, int64_t wanted, Search& search) {
  constexpr int kOwn = kBins / kThreads;
  const int first = threadIdx.x * kOwn;
  int sum = 0;
  for (int i = 0; i < kOwn; ++i) sum += counts[first + i];
  search.sums[threadIdx.x] = sum;
  __syncthreads();
  int above = 0;
  for (int t = threadIdx.x + 1; t < kThreads; ++t) above += search.sums[t];
  if (above < wanted && wanted <= above + sum) {
    int digit = first + kOwn - 1;
    for (; above + counts[digit] < wanted; --digit) above += counts[digit];
    search.digit = digit;
    search.above = above;
  }
  __syncthreads();
}

// Counts the digit at `position` of those values that share the digits before it with the k-th
// largest.
//
// Mapping: block -> a slice of one row; thread -> every kThreads-th value of it. All blocks of a
// row find the digit before `position` from the counts of the launch before; the first one notes
// it. Shared memory: counts of the slice [kBins], 16 KiB, which are added to those of the row at
// the end; Search.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    count_digit(const __grid_constant__ TopKArguments<T> a, int position) {
  __shared__ int counts[kBins];
  __shared__ Search search;
  for (int64_t item = blockIdx.x; item < a.items(); item += gridDim.x) {
    const Slice<T> slice(a, item);
    int* row_counts = a.counts + (slice.row * kDigits<T> + position) * kBins;
    Prefix* prefixes = a.prefixes + slice.row * kDigits<T>;
    Prefix prefix{0, a.k[slice.level]};
    if (position > 0) {
      if (position > 1) prefix = prefixes[position - 1];
      find_digit(row_counts - kBins, prefix.wanted, search);
      prefix = {prefix.digits << kDigitBits | search.digit, prefix.wanted - search.above};
      if (slice.first == 0 && threadIdx.x == 0) prefixes[position] = prefix;
    }
    for (int i = threadIdx.x; i < kBins; i += kThreads) counts[i] = 0;
    __syncthreads();
    slice.for_each(a, [&](const Entry<T>& entry, bool exists) {
      if (exists && entry.first_digits(position) == ordered_bits_t<T>(prefix.digits)) {
        atomicAdd(&counts[entry.digit(position)], 1);
      }
    });
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      if (counts[i] > 0) atomicAdd(&row_counts[i], counts[i]);
    }
    __syncthreads();  // the next item overwrites shared memory
  }
}

// Lists the values whose digits are not below those of the k-th largest, in any order.
//
// Mapping: as count_digit. The lanes of a warp that have found one reserve their entries with one
// atomicAdd on the row's count. Shared memory: Search.
template <typename T>
__global__ void __launch_bounds__(kThreads) collect(const __grid_constant__ TopKArguments<T> a) {
  constexpr int kLast = kDigits<T> - 1;
  __shared__ Search search;
  for (int64_t item = blockIdx.x; item < a.items(); item += gridDim.x) {
    const Slice<T> slice(a, item);
    const Prefix prefix = a.prefixes[slice.row * kDigits<T> + kLast];
    find_digit(a.counts + (slice.row * kDigits<T> + kLast) * kBins, prefix.wanted, search);
    const int last_digit = search.digit;
    const auto first_digits = ordered_bits_t<T>(prefix.digits);
    Entry<T>* entries = a.entries + slice.row / a.levels * a.width + a.begin[slice.level];
    slice.for_each(a, [&](const Entry<T>& entry, bool exists) {
      const auto own = entry.first_digits(kLast);
      const bool found = exists && (own > first_digits ||
                                    (own == first_digits && entry.digit(kLast) >= last_digit));
      const unsigned ballot = __ballot_sync(~0u, found);
      const int lane = threadIdx.x % 32;
      int to = 0;
      if (lane == 0 && ballot != 0) to = atomicAdd(&a.collected[slice.row], __popc(ballot));
      to = __shfl_sync(~0u, to, 0);
      if (found) entries[to + __popc(ballot & ((1u << lane) - 1))] = entry;
    });
    __syncthreads();  // the next item overwrites shared memory
  }
}

// Writes the index of each collected value to its position: the number of values before it.
//
// Mapping: warp -> one collected value; lane -> every 32nd of the others, of which a ballot counts
// those that come before. No shared memory: the 16 KB of 2,000 entries are read through L1 and L2.
//
// That takes k^2 comparisons, 4 million for k = 2,000, where a sort would take k log^2 k and one
// block per row. Estimate: faster up to some 20,000 values per level.
template <typename T>
__global__ void __launch_bounds__(kThreads) rank(const __grid_constant__ TopKArguments<T> a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto blocks = [](int64_t collected) { return ceil_div<int64_t>(collected, kWarps); };
  for (BlockItems items(a.collected, a.images * a.levels, blocks); !items.done(); items.next()) {
    const int64_t image = items.row() / a.levels, level = items.row() % a.levels;
    const int64_t own = items.item() * kWarps + warp;
    const int64_t collected = a.collected[items.row()];
    if (own >= collected) continue;  // the whole warp
    const Entry<T>* entries = a.entries + image * a.width + a.begin[level];
    const Entry<T> entry = entries[own];
    int64_t before = 0;
    for (int64_t first = 0; first < collected; first += 32) {
      const int64_t other = first + lane;
      before += __popc(__ballot_sync(~0u, other < collected && entries[other].comes_before(entry)));
    }
    if (lane == 0 && before < a.k[level]) {
      a.indices[image * a.found + a.out_begin[level] + before] = a.begin[level] + entry.index;
    }
  }
}

template <typename T>
void top_k(const Tensor& values, const std::vector<int64_t>& sizes, int64_t k, Tensor& indices) {
  const CudaLaunch launch(values);
  const int64_t rows = values.size(0) * int64_t(sizes.size());
  const auto ints = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(values, shape, ScalarType::Int);
  };
  Tensor counts = ints({rows * kDigits<T> * kBins + rows});
  torch::stable::zero_(counts);
  Tensor prefixes = ints({rows, kDigits<T>, sizeof(Prefix) / sizeof(int)});
  Tensor entries = ints({values.size(0), values.size(1), sizeof(Entry<T>) / sizeof(int)});
  TopKArguments<T> arguments{
      .values = values.const_data_ptr<T>(),
      .levels = int64_t(sizes.size()),
      .width = values.size(1),
      .found = indices.size(1),
      .counts = counts.mutable_data_ptr<int>(),
      .collected = counts.mutable_data_ptr<int>() + rows * kDigits<T> * kBins,
      .prefixes = reinterpret_cast<Prefix*>(prefixes.mutable_data_ptr<int>()),
      .entries = reinterpret_cast<Entry<T>*>(entries.mutable_data_ptr<int>()),
      .indices = indices.mutable_data_ptr<int64_t>(),
      .images = values.size(0),
  };
  int64_t begin = 0, out_begin = 0;
  for (size_t l = 0; l < sizes.size(); ++l) {
    arguments.begin[l] = begin;
    arguments.size[l] = sizes[l];
    arguments.k[l] = std::min(k, sizes[l]);
    arguments.out_begin[l] = out_begin;
    begin += sizes[l];
    out_begin += arguments.k[l];
  }
  for (int position = 0; position < kDigits<T>; ++position) {
    launch("count_digit", count_digit<T>, arguments.items(), arguments, position);
  }
  launch("collect", collect<T>, arguments.items(), arguments);
  launch("rank", rank<T>, kResidentBlocks, arguments);
}

Tensor top_k_of_levels(Tensor values, std::vector<int64_t> level_sizes, int64_t k) {
  check_top_k_arguments(values, level_sizes, k);
  CHECK_ARGUMENT(level_sizes.size() <= kMaxLevels, "there are ", level_sizes.size(),
                 " levels, CUDA takes up to ", kMaxLevels);
  int64_t found = 0;
  for (const int64_t size : level_sizes) {
    CHECK_ARGUMENT(size <= kMaxLevelSize, "a level has ", size, " values, CUDA takes up to ",
                   kMaxLevelSize);
    found += std::min(k, size);
  }
  values = torch::stable::contiguous(values);
  Tensor indices = torch::stable::new_empty(values, {values.size(0), found}, ScalarType::Long);
  dispatch_float_double(values.scalar_type(), "values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (indices.numel() > 0) top_k<T>(values, level_sizes, k, indices);
  });
  return indices;
}

}  // namespace
}  // namespace maskrcnn

STABLE_TORCH_LIBRARY_IMPL(maskrcnn_scratch, CUDA, library) {
  library.impl("top_k_of_levels", TORCH_BOX(&maskrcnn::top_k_of_levels));
}
