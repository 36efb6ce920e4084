// Several arrays in one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskrcnn {

// Places arrays one after another, each at a multiple of 16 bytes from `address` on. Placing them
// from address 0 counts the bytes; placing them again gives the pointers.
class Workspace {
 public:
  explicit Workspace(void* address) : begin_(reinterpret_cast<uintptr_t>(address)), end_(begin_) {}

  template <typename T>
  T* array(int64_t count) {
    T* const first = reinterpret_cast<T*>(end_);
    end_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return first;
  }
  int64_t bytes() const { return int64_t(end_ - begin_); }

 private:
  static constexpr size_t kAlignment = 16;
  uintptr_t begin_, end_;
};

}  // namespace maskrcnn
