// Zeros that cost nothing until they are touched.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>
#include <vector>

namespace maskrcnn {

// A CPU tensor of zeros. Large allocations come from the operating system as untouched pages, so
// that what is never written takes neither time nor memory.
inline torch::stable::Tensor lazy_zeros(const std::vector<int64_t>& sizes,
                                        const std::vector<int64_t>& strides,
                                        torch::headeronly::ScalarType dtype, size_t element_size) {
  size_t count = 1;
  for (const int64_t size : sizes) count *= size_t(size);
  void* data = std::calloc(count > 0 ? count : 1, element_size);
  if (data == nullptr) throw std::bad_alloc();
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(data, sizes, strides, cpu, dtype, std::free);
}

}  // namespace maskrcnn
