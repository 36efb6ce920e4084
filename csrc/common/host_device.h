// HOST_DEVICE marks a function that CPU and CUDA kernels share, so that the formulas of an op are
// written once. Both compilers are told not to fuse multiply and add (setup.py): every operation
// rounds on its own, and both devices give the same bits.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif
