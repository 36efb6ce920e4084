// Numbering the threads of a block that found something.
#pragma once

#include "cuda_launch.cuh"

namespace maskrcnn {

constexpr int kWarps = kThreads / 32;

// How many threads before this one have `found`, and in `total` how many of the block. A step of
// the whole block with two barriers; found_by_warp is shared memory.
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
