// The host's side of a CUDA kernel: device, stream, launch and its errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "checks.h"
#include "host_device.h"

// Threads of a block, for every kernel: 8 warps, of which several blocks fit on a multiprocessor.
// The emulation in tests/cuda also builds with 64, where fewer threads share the same work.
#ifndef MASKRCNN_CUDA_THREADS
#define MASKRCNN_CUDA_THREADS 256
#endif

namespace maskrcnn {

constexpr int kThreads = MASKRCNN_CUDA_THREADS;
constexpr int kWarps = kThreads / 32;
static_assert(kThreads % 64 == 0 && kThreads >= 64 && kThreads <= 1024);

inline void check_cuda(cudaError_t error, const char* kernel) {
  CHECK_ARGUMENT(error == cudaSuccess, kernel, ": ", cudaGetErrorString(error));
}

// Makes the device of a tensor the current one while it lives, and launches on its current stream.
class CudaLaunch {
 public:
  explicit CudaLaunch(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    CHECK_ARGUMENT(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) ==
                       AOTI_TORCH_SUCCESS,
                   "torch has no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Launches one block per item of work, up to the largest grid; a block takes every gridDim.x-th
  // item. Without items nothing is launched.
  template <typename... Parameters, typename... Arguments>
  void operator()(const char* name,
                  void (*kernel)(Parameters...),
                  int64_t items,
                  Arguments&&... arguments) const {
    if (items == 0) return;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(std::min<int64_t>(items, kMaxBlocks)));
    config.blockDim = dim3(kThreads);
    config.stream = stream_;
    check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
    check_cuda(cudaGetLastError(), name);
  }

  // Sets bytes to zero.
  void clear(void* address, int64_t bytes) const {
    check_cuda(cudaMemsetAsync(address, 0, bytes, stream_), "cudaMemsetAsync");
  }

 private:
  static constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <typename T>
HOST_DEVICE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Blocks for work whose amount only the device knows. An H100 holds at most 132 * 8 = 1,056 blocks
// of 256 threads at once, so 2,048 fill it; blocks without work end at once.
constexpr int64_t kResidentBlocks = 2048;

// MASKRCNN_CHECKED=1 in the environment: levels, batch indices, groups and the indices of deltas
// and references are copied to the host and checked before each launch, and raise as on the CPU.
// This synchronises. Without it, RoIs and boxes out of range give zeros.
inline bool checked_mode() {
  const char* value = std::getenv("MASKRCNN_CHECKED");
  return value != nullptr && std::string(value) == "1";
}

}  // namespace maskrcnn
