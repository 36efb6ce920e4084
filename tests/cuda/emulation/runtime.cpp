// Runs the threads of a block as fibers: each until its next barrier, in some order.
#include "runtime.h"

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

dim3 gridDim, blockDim, blockIdx, threadIdx;

// A fiber is a stack and the registers that a call preserves. swapcontext would do, but it makes
// two system calls per switch, to keep the signal mask.
#ifdef __x86_64__
using Fiber = void*;  // its stack pointer; the registers lie on the stack
extern "C" void emulated_switch(Fiber* from, Fiber* to);
asm(R"(
.text
.type emulated_switch, @function
.hidden emulated_switch
.globl emulated_switch
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, . - emulated_switch
)");
static void make_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16);
  *--top = 0;  // no caller; the entry finds the stack aligned as after a call
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  fiber = top;
}
#else
using Fiber = ucontext_t;
static void emulated_switch(Fiber* from, Fiber* to) {
  swapcontext(from, to);
}
static void make_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack;
  fiber.uc_stack.ss_size = bytes;
  makecontext(&fiber, entry, 0);
}
#endif

namespace emulated {

Now now;

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kMaxThreads = 1024, kMaxGrid = (1u << 31) - 1;  // of CUDA

struct Thread {
  enum State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };
  State state = kDone;
  int line = 0;            // of the barrier that it waits at
  unsigned mask = 0;       // lanes that it waits for
  uint64_t exchanged = 0;  // what it shows to its warp
  Fiber fiber;
  std::unique_ptr<char[]> stack;
};

Thread threads[kMaxThreads];
uint64_t met_warp[kMaxThreads];
Fiber scheduler;
const std::function<void()>* kernel;
std::string failure;

void leave() {
  now.in_kernel = false;
  emulated_switch(&threads[threadIdx.x].fiber, &scheduler);
}

void enter(unsigned i) {
  Thread& thread = threads[i];
  threadIdx.x = now.thread = i;
  now.stack_begin = thread.stack.get();
  now.stack_end = now.stack_begin + kStackBytes;
  now.in_kernel = true;
  emulated_switch(&scheduler, &thread.fiber);
}

// A fiber outlives its kernel: it runs the next when it is entered again.
void fiber_main() {
  for (;;) {
    (*kernel)();
    threads[threadIdx.x].state = Thread::kDone;
    leave();
  }
}

void forget_fibers() {
  for (Thread& thread : threads) thread.stack.reset();
}

class Block {
 public:
  Block(unsigned size, const std::string& order, std::mt19937& random)
      : size_(size), order_(size), shuffled_(order == "shuffled"), random_(random) {
    std::iota(order_.begin(), order_.end(), 0);
    if (order == "backward") std::reverse(order_.begin(), order_.end());
    now.block = now.barrier = ++now.time;
    now.warp = met_warp;
    std::fill_n(met_warp, size, now.time);
    for (unsigned i = 0; i < size; ++i) {
      Thread& thread = threads[i];
      thread.state = Thread::kReady;
      if (thread.stack) continue;
      thread.stack.reset(new char[kStackBytes]);
      make_fiber(thread.fiber, thread.stack.get(), kStackBytes, &fiber_main);
    }
    poison_shared_memory();
  }

  void run() {
    while (step()) {
    }
  }

 private:
  // Runs each thread up to its next barrier and opens the barriers that all have reached. False
  // when all threads are done.
  bool step() {
    bool ran = false;
    if (shuffled_) std::shuffle(order_.begin(), order_.end(), random_);
    for (const unsigned i : order_) {
      if (threads[i].state != Thread::kReady) continue;
      enter(i);
      if (!failure.empty()) throw std::runtime_error(failure);
      ran = true;
    }
    ++now.time;
    for (unsigned first = 0; first < size_; first += kWarp) release_lanes(first);
    release_block();
    if (std::all_of(threads, threads + size_,
                    [](const Thread& thread) { return thread.state == Thread::kDone; })) {
      return false;
    }
    if (!ran) throw std::runtime_error("threads wait at a barrier that others do not reach");
    return true;
  }

  // Opens the warp barriers at which all lanes of the mask are, or have ended.
  void release_lanes(unsigned first) {
    const unsigned end = std::min(first + kWarp, size_);
    const auto complete = [&](const Thread& waiting) {
      for (unsigned i = first; i < end; ++i) {
        const Thread& lane = threads[i];
        if (!(waiting.mask >> (i - first) & 1) || lane.state == Thread::kDone) continue;
        if (lane.state != Thread::kAtWarpBarrier || lane.line != waiting.line ||
            lane.mask != waiting.mask) {
          return false;
        }
      }
      return true;
    };
    std::array<bool, kWarp> opens = {};
    for (unsigned i = first; i < end; ++i) {
      opens[i - first] = threads[i].state == Thread::kAtWarpBarrier && complete(threads[i]);
    }
    for (unsigned i = first; i < end; ++i) {
      if (!opens[i - first]) continue;
      threads[i].state = Thread::kReady;
      met_warp[i] = now.time;
    }
  }

  void release_block() {
    for (unsigned i = 0; i < size_; ++i) {
      if (threads[i].state != Thread::kAtBlockBarrier || threads[i].line != threads[0].line) return;
    }
    for (unsigned i = 0; i < size_; ++i) threads[i].state = Thread::kReady;
    now.barrier = now.time;
  }

  unsigned size_;
  std::vector<unsigned> order_;
  bool shuffled_;
  std::mt19937& random_;
};

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

void wait(Thread::State barrier, int line, unsigned mask) {
  Thread& thread = threads[threadIdx.x];
  thread.state = barrier;
  thread.line = line;
  thread.mask = mask;
  leave();
}

}  // namespace

void fail(const std::string& message) {
  failure = "thread " + std::to_string(threadIdx.x) + ": " + message;
  leave();
  std::abort();  // a kernel that failed is not entered again
}

void block_barrier(int line) {
  wait(Thread::kAtBlockBarrier, line, 0);
}

std::array<uint64_t, kWarp> exchange(unsigned mask, uint64_t value, int line) {
  const unsigned first = threadIdx.x / kWarp * kWarp;
  if (!(mask >> (threadIdx.x - first) & 1)) {
    fail("line " + std::to_string(line) + ": the mask of a warp primitive does not name its lane");
  }
  threads[threadIdx.x].exchanged = value;
  wait(Thread::kAtWarpBarrier, line, mask);
  std::array<uint64_t, kWarp> values = {};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const bool shows = mask >> lane & 1 && first + lane < blockDim.x &&
                       threads[first + lane].state != Thread::kDone;
    if (shows) values[lane] = threads[first + lane].exchanged;
  }
  wait(Thread::kAtWarpBarrier, line, mask);  // no lane shows its next value before all have read
  return values;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& function) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x == 0 || grid.x > kMaxGrid || block.x == 0 || block.x > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  const std::string order = setting("EMULATED_ORDER", "forward");
  const unsigned most = std::stoul(setting("EMULATED_BLOCKS", "6"));
  gridDim.x = std::min(grid.x, most);
  blockDim = block;
  kernel = &function;
  failure.clear();
  now.launch = ++now.time;
  begin_recording(setting("EMULATED_RACES", "") == "1");

  static std::mt19937 random{0};
  std::vector<unsigned> blocks(gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order == "backward") std::reverse(blocks.begin(), blocks.end());
  if (order == "shuffled") std::shuffle(blocks.begin(), blocks.end(), random);
  for (const unsigned index : blocks) {
    blockIdx.x = index;
    try {
      Block(block.x, order, random).run();
    } catch (const std::runtime_error& error) {
      forget_fibers();
      throw std::runtime_error("emulated block " + std::to_string(index) + ": " + error.what());
    }
  }
  return cudaSuccess;
}

}  // namespace emulated
