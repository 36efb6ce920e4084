// Several neighbouring elements in one memory access.
#pragma once

#include <cstdint>
#include <cstring>

namespace maskrcnn {

constexpr int kVectorBytes = 16;  // the widest access of a thread

template <typename S, int V>
struct alignas(sizeof(S) * V) Vector {
  S values[V];
};

// CUDA's type of so many bytes. An assignment may store its elements one by one, as it did in
// paste_all; __stwb, the ordinary write-back store, is one instruction.
template <size_t bytes>
struct MemoryWord;
template <>
struct MemoryWord<16> {
  using type = uint4;
};
template <>
struct MemoryWord<8> {
  using type = uint2;
};
template <>
struct MemoryWord<4> {
  using type = unsigned;
};
template <>
struct MemoryWord<2> {
  using type = unsigned short;
};

// `from` and `to` must be aligned to V elements.
template <typename S, int V>
__device__ __forceinline__ Vector<S, V> load_vector(const S* from) {
  return *reinterpret_cast<const Vector<S, V>*>(from);
}
template <typename S, int V>
__device__ __forceinline__ void store_vector(S* to, const Vector<S, V>& vector) {
  typename MemoryWord<sizeof(vector)>::type word;
  memcpy(&word, &vector, sizeof(vector));
  __stwb(reinterpret_cast<decltype(word)*>(to), word);
}

inline bool is_aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace maskrcnn
