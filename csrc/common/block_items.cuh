// Dividing work of which only the device knows the amount.
#pragma once

#include "cuda_launch.cuh"

namespace maskrcnn {

// The items of work of several rows, one row after another, of which a block takes every
// gridDim.x-th. A row is an image, or a level of one. How much is in a row only the device knows:
// row r has items_of(counts[r]) items.
template <typename ItemsOf>
class BlockItems {
 public:
  __device__ BlockItems(const int* counts, int64_t rows, const ItemsOf& items_of)
      : counts_(counts), rows_(rows), items_of_(items_of), item_(blockIdx.x) {
    skip_rows();
  }
  __device__ bool done() const { return row_ == rows_; }
  __device__ void next() {
    item_ += gridDim.x;
    skip_rows();
  }
  __device__ int64_t row() const { return row_; }
  __device__ int64_t item() const { return item_; }  // within the row

 private:
  __device__ void skip_rows() {
    for (; row_ < rows_; ++row_) {
      const int64_t items = items_of_(int64_t(counts_[row_]));
      if (item_ < items) return;
      item_ -= items;
    }
  }

  const int* counts_;
  int64_t rows_;
  ItemsOf items_of_;
  int64_t item_, row_ = 0;
};

}  // namespace maskrcnn
