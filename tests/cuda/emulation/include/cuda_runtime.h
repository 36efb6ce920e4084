// CUDA's execution model on the CPU, for tests: the .cu files of csrc/ compile with this header in
// place of the CUDA runtime's. runtime.cpp runs the blocks one after another; the threads of a
// block are fibers, which run in some order until they reach a barrier. memory.cpp sees what they
// read and write.
//
// It finds: a result that depends on the order of threads or blocks; a barrier or a warp primitive
// that some threads do not reach, or that is called with a mask that does not name its callers;
// launches that CUDA refuses; shared memory that is read before it is written; and, where the
// kernels are compiled with calls for each access, data races within and between blocks.
//
//   EMULATED_ORDER = forward | backward | shuffled   order of the threads and of the blocks
//   EMULATED_BLOCKS                                   most blocks of a grid (default 6)
//   EMULATED_RACES = 1                                a data race is an error
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// __shared__ is defined by build.py: one block runs at a time, so one copy is enough.

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <typename T>
void __stwb(T* to, T value) {
  *to = value;
}

#if __has_include(<sanitizer/asan_interface.h>)
#include <sanitizer/asan_interface.h>
#define MASKRCNN_POISON(address, bytes) ASAN_POISON_MEMORY_REGION(address, bytes)
#endif

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

extern dim3 gridDim, blockDim, blockIdx, threadIdx;  // as the running thread sees them

namespace emulated {

constexpr unsigned kWarp = 32;

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

// Waits until all threads of the block are at this barrier.
void block_barrier(int line);

// Waits until the lanes of `mask` are here, each with a value; returns the values by lane. A lane
// that has ended shows 0.
std::array<uint64_t, kWarp> exchange(unsigned mask, uint64_t value, int line);

// Atomics are one access that may race with other atomics.
void record_atomic(const void* address, unsigned bytes);

inline unsigned ballot(unsigned mask, bool value, int line) {
  const auto values = exchange(mask, value, line);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) bits |= unsigned(values[lane]) << lane;
  return bits;
}

template <typename T>
T shuffle(unsigned mask, T value, int lane, int line) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, line)[unsigned(lane) % kWarp];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// T is what atomics of CUDA exist for, V what the caller gives.
template <typename T, typename F>
__attribute__((no_sanitize("thread"))) T atomic(T* to, const F& updated) {
  record_atomic(to, sizeof(T));
  const T before = *to;
  *to = updated(before);
  return before;
}
template <typename T, typename V>
T atomic_add(T* to, V value) {
  return atomic(to, [&](T before) { return T(before + T(value)); });
}
template <typename T, typename V>
T atomic_or(T* to, V value) {
  return atomic(to, [&](T before) { return T(before | T(value)); });
}
template <typename T, typename V>
T atomic_max(T* to, V value) {
  return atomic(to, [&](T before) { return std::max(before, T(value)); });
}

}  // namespace emulated

#define __syncthreads() ::emulated::block_barrier(__LINE__)
#define __ballot_sync(mask, predicate) ::emulated::ballot(mask, predicate, __LINE__)
#define __shfl_sync(mask, value, lane) ::emulated::shuffle(mask, value, lane, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  ::emulated::shuffle(mask, value, int(threadIdx.x) ^ (bits), __LINE__)
#define __popc(bits) __builtin_popcount(bits)
#define __popcll(bits) __builtin_popcountll(bits)
#define __ffsll(bits) __builtin_ffsll(bits)
#define atomicAdd(to, value) ::emulated::atomic_add(to, value)
#define atomicOr(to, value) ::emulated::atomic_or(to, value)
#define atomicMax(to, value) ::emulated::atomic_max(to, value)

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulated::launch(*config, [&] { kernel(arguments...); });
}
