// Numbering those threads of a block for which a condition holds.
#pragma once

#include "cuda_launch.cuh"

namespace maskrcnn {

constexpr int kWarps = kThreads / 32;

// How many threads before this one have `found`, and in `total` how many of the whole block.
//
// Mapping: lane -> one bit of its warp's ballot. A lane counts the set bits below its own, and adds
// the counts of the warps before its own, which it reads from shared memory (found_by_warp). All
// threads of the block call it; it has two barriers.
// Example: found by lanes 1, 3 and 4 of warp 0 and by lane 0 of warp 1 gives 0, 1, 2 and 3.
__device__ __forceinline__ int count_before(bool found, int (&found_by_warp)[kWarps], int& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned ballot = __ballot_sync(~0u, found);
  if (lane == 0) found_by_warp[warp] = __popc(ballot);
  __syncthreads();
  int before = __popc(ballot & ((1u << lane) - 1));
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += found_by_warp[w];
    total += found_by_warp[w];
  }
  __syncthreads();
  return before;
}

}  // namespace maskrcnn
