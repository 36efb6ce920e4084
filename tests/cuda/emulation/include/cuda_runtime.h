// CUDA's execution model on the CPU, for tests: the .cu files of csrc/ compile with this header in
// place of the CUDA runtime's. One block runs at a time; its threads are fibers, which run in some
// order until they reach a barrier. A kernel whose result depends on that order lacks a barrier.
//
//   EMULATED_ORDER = forward | backward | shuffled   order of the threads
//   EMULATED_BLOCKS                                   most blocks of a grid (default 6)
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline const char* cudaGetErrorString(cudaError_t) {
  return "";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;  // as the running thread sees them

namespace emulated {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;

struct Thread {
  enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };
  State state = kReady;
  int line = 0;            // of the barrier that it waits at
  uint64_t exchanged = 0;  // what it shows to its warp
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
};

class Block {
 public:
  static inline Block* running = nullptr;

  Block(unsigned threads, const std::string& order) : threads_(threads), order_(threads) {
    std::iota(order_.begin(), order_.end(), 0);
    if (order == "backward") std::reverse(order_.begin(), order_.end());
    shuffled_ = order == "shuffled";
  }

  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    for (Thread& thread : threads_) start(thread);
    while (step()) {
    }
  }

  void wait(Thread::State barrier, int line) {
    Thread& thread = threads_[threadIdx.x];
    thread.state = barrier;
    thread.line = line;
    swapcontext(&thread.context, &scheduler_);
  }

  void show(uint64_t value) { threads_[threadIdx.x].exchanged = value; }

  // What lane `lane` of the current warp showed.
  uint64_t shown(unsigned lane) {
    return threads_[threadIdx.x / kWarp * kWarp + lane % kWarp].exchanged;
  }

 private:
  static void entry() {
    (*running->kernel_)();
    running->threads_[threadIdx.x].state = Thread::kDone;
  }

  void start(Thread& thread) {
    thread.state = Thread::kReady;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = &scheduler_;
    makecontext(&thread.context, &Block::entry, 0);
  }

  // Runs each thread up to its next barrier and opens the barriers that all have reached. False
  // when all threads are done.
  bool step() {
    bool ran = false;
    if (shuffled_) std::shuffle(order_.begin(), order_.end(), random_);
    for (const unsigned i : order_) {
      if (threads_[i].state != Thread::kReady) continue;
      threadIdx.x = i;
      swapcontext(&scheduler_, &threads_[i].context);
      ran = true;
    }
    for (unsigned first = 0; first < threads_.size(); first += kWarp) {
      release(first, std::min<unsigned>(first + kWarp, threads_.size()), Thread::kAtWarpBarrier);
    }
    release(0, threads_.size(), Thread::kAtBlockBarrier);
    const auto is = [](Thread::State state) {
      return [state](const Thread& thread) { return thread.state == state; };
    };
    if (std::all_of(threads_.begin(), threads_.end(), is(Thread::kDone))) return false;
    if (!ran) {
      throw std::runtime_error("emulated block " + std::to_string(blockIdx.x) +
                               ": threads wait at a barrier that others do not reach");
    }
    return true;
  }

  void release(unsigned begin, unsigned end, Thread::State barrier) {
    for (unsigned i = begin; i < end; ++i) {
      if (threads_[i].state != barrier) return;
      if (threads_[i].line != threads_[begin].line) return;
    }
    for (unsigned i = begin; i < end; ++i) threads_[i].state = Thread::kReady;
  }

  std::vector<Thread> threads_;
  std::vector<unsigned> order_;
  bool shuffled_;
  std::mt19937 random_{0};
  const std::function<void()>* kernel_ = nullptr;
  ucontext_t scheduler_;
};

inline std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

inline void launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const unsigned most = std::stoul(setting("EMULATED_BLOCKS", "6"));
  gridDim.x = std::min(config.gridDim.x, most);
  blockDim = config.blockDim;
  Block block(blockDim.x, setting("EMULATED_ORDER", "forward"));
  Block::running = &block;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) block.run(kernel);
}

// Every lane of the warp shows a value; returns how to read that of any lane.
inline auto show(uint64_t value, int line) {
  Block& block = *Block::running;
  block.show(value);
  block.wait(Thread::kAtWarpBarrier, line);
  uint64_t values[kWarp];
  for (unsigned lane = 0; lane < kWarp; ++lane) values[lane] = block.shown(lane);
  block.wait(Thread::kAtWarpBarrier, line);  // no lane shows its next value before all have read
  return std::to_array(values);
}

inline unsigned ballot(bool value, int line) {
  const auto values = show(value, line);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) bits |= unsigned(values[lane]) << lane;
  return bits;
}

inline int shuffle(int value, int lane, int line) {
  return int(show(uint32_t(value), line)[lane]);
}

template <typename T, typename V>
T atomic_add(T* to, V value) {
  const T before = *to;
  *to = before + T(value);
  return before;
}

template <typename T>
T atomic_or(T* to, T value) {
  const T before = *to;
  *to = before | value;
  return before;
}

}  // namespace emulated

#define __syncthreads() \
  ::emulated::Block::running->wait(::emulated::Thread::kAtBlockBarrier, __LINE__)
#define __ballot_sync(mask, predicate) ::emulated::ballot(predicate, __LINE__)
#define __shfl_sync(mask, value, lane) ::emulated::shuffle(value, lane, __LINE__)
#define __popc(bits) __builtin_popcount(bits)
#define __popcll(bits) __builtin_popcountll(bits)
#define __ffsll(bits) __builtin_ffsll(bits)
#define atomicAdd(to, value) ::emulated::atomic_add(to, value)
#define atomicOr(to, value) ::emulated::atomic_or(to, value)

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulated::launch(*config, [&] { kernel(arguments...); });
  return cudaSuccess;
}
