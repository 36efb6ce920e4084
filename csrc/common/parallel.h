// Tasks of different size on the CPU's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace maskrcnn {

// Calls task(worker, i) for each i in [0, count). A thread that has finished takes the next `chunk`
// of them. Calls that run at the same time have different workers in [0, number of threads). Tasks
// must not throw, nor write to the same memory.
template <typename F>
void parallel_tasks_of_workers(int64_t count, const F& task, int64_t chunk = 1) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t chunks = (count + chunk - 1) / chunk;
  const int64_t workers = std::min<int64_t>(chunks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t first; (first = next.fetch_add(chunk)) < count;) {
      for (int64_t i = first; i < std::min(first + chunk, count); ++i) task(worker, i);
    }
  });
}

// The same for task(i).
template <typename F>
void parallel_tasks(int64_t count, const F& task, int64_t chunk = 1) {
  parallel_tasks_of_workers(count, [&](int64_t, int64_t i) { task(i); }, chunk);
}

}  // namespace maskrcnn
