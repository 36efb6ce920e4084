// CPU memory for large results, where page faults can cost more than the kernel itself.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "checks.h"

namespace maskrcnn {

using torch::headeronly::MemoryFormat;

// Asks for pages of 2 MiB in a range of which (nearly) all will be written; only a hint.
inline void prefer_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// An uninitialised tensor [N, F, H, W], all of which will be written.
inline Tensor empty_cpu(const std::vector<int64_t>& sizes, ScalarType dtype, bool channels_last) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  Tensor tensor = torch::stable::empty(sizes, dtype, std::nullopt, cpu, std::nullopt,
                                       memory_format(channels_last));
  prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// A tensor [N, F, H, W] of zeros. calloc of a large size gives zero pages that the operating system
// allocates when they are first written, so what is never written takes neither time nor memory.
// The caller has checked that the number of elements does not overflow (check_numel).
inline Tensor lazy_zeros_cpu(const std::vector<int64_t>& sizes,
                             ScalarType dtype,
                             size_t element_size,
                             bool channels_last) {
  const int64_t channels = sizes[1], height = sizes[2], width = sizes[3];
  const std::vector<int64_t> strides =
      channels_last ? std::vector<int64_t>{channels * height * width, 1, width * channels, channels}
                    : std::vector<int64_t>{channels * height * width, height * width, width, 1};
  const size_t count = size_t(sizes[0]) * size_t(strides[0]);
  void* data = std::calloc(count > 0 ? count : 1, element_size);
  if (data == nullptr) throw std::bad_alloc();
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(data, sizes, strides, cpu, dtype, std::free);
}

}  // namespace maskrcnn
