// Several neighbouring elements in one memory access.
#pragma once

#include <cstdint>

namespace maskrcnn {

constexpr int kVectorBytes = 16;  // the widest access of a thread

template <typename S, int V>
struct alignas(sizeof(S) * V) Vector {
  S values[V];
};

// `from` and `to` must be aligned to V elements.
template <typename S, int V>
__device__ __forceinline__ Vector<S, V> load_vector(const S* from) {
  return *reinterpret_cast<const Vector<S, V>*>(from);
}
template <typename S, int V>
__device__ __forceinline__ void store_vector(S* to, const Vector<S, V>& vector) {
  *reinterpret_cast<Vector<S, V>*>(to) = vector;
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace maskrcnn
