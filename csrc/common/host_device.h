// Marks a function that both the CPU and the CUDA kernels inline, so that the maths of an op
// stands once. Both compilers are told not to fuse multiply and add (setup.py), so that every
// operation rounds on its own and both devices give the same bits.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline __attribute__((always_inline))
#endif
