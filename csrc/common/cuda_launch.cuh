// What every CUDA kernel needs on the host's side: device, stream, launch, and a place for errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "checks.h"
#include "host_device.h"

// Threads of a block, for every kernel. Tests build with others too.
#ifndef MASKRCNN_CUDA_THREADS
#define MASKRCNN_CUDA_THREADS 256
#endif

namespace maskrcnn {

constexpr int kThreads = MASKRCNN_CUDA_THREADS;
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

  // Runs `items` pieces of work, each the size of a block; the kernel must take every gridDim.x-th.
  // No work, no launch.
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

 private:
  static constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

template <typename T>
HOST_DEVICE T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// Blocks for work whose amount only the device knows: enough for any GPU, and cheap when idle.
constexpr int64_t kResidentBlocks = 2048;

// MASKRCNN_CHECKED=1 in the environment: indices are looked at before a launch, and raise as on the
// CPU. That waits for the device; without it RoIs out of range give zeros.
inline bool checked_mode() {
  const char* value = std::getenv("MASKRCNN_CHECKED");
  return value != nullptr && std::string(value) == "1";
}

}  // namespace maskrcnn
