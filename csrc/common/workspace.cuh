// Several arrays in one allocation.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

// The emulation's cuda_runtime.h defines it: under AddressSanitizer, an access between two arrays
// is an error.
#ifndef MASKRCNN_POISON
#define MASKRCNN_POISON(address, bytes)
#endif

namespace maskrcnn {

// Places arrays one after another, each at a multiple of 16 bytes from `address` on, with at least
// 16 bytes between them. Placing them from address 0 counts the bytes; placing them again gives the
// pointers.
class Workspace {
 public:
  explicit Workspace(void* address) : begin_(reinterpret_cast<uintptr_t>(address)), end_(begin_) {}

  template <typename T>
  T* array(int64_t count) {
    const uintptr_t first = end_, last = first + count * sizeof(T);
    end_ = (last + 2 * kAlignment - 1) / kAlignment * kAlignment;
    if (begin_ != 0) MASKRCNN_POISON(reinterpret_cast<void*>(last), end_ - last);
    return reinterpret_cast<T*>(first);
  }
  int64_t bytes() const { return int64_t(end_ - begin_); }

 private:
  static constexpr size_t kAlignment = 16;
  uintptr_t begin_, end_;
};

}  // namespace maskrcnn
