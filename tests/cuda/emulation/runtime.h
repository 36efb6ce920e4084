// What runtime.cpp (who runs) and memory.cpp (what is accessed) tell each other.
#pragma once

#include <cstdint>
#include <string>

namespace emulated {

// Time is counted in barriers that have opened. An access at a time before `ordered_since` of two
// threads comes before what they do now.
struct Now {
  bool in_kernel = false;          // a thread of a kernel runs
  uint64_t time = 1;               //
  uint64_t launch = 0, block = 0;  // when the launch and the block began
  uint64_t barrier = 0;            // when the block's threads last met
  const uint64_t* warp = nullptr;  // [threads]: when each last met its warp
  unsigned thread = 0;             // that runs, and its stack
  const char *stack_begin = nullptr, *stack_end = nullptr;
};
extern Now now;

// Ends the kernel with an error; called by its running thread.
[[noreturn]] void fail(const std::string& message);

// Fills shared memory with ones: NaN in a float, -1 in an integer.
void poison_shared_memory();

// Forgets accesses; before each launch.
void begin_recording(bool races_are_errors);

}  // namespace emulated
