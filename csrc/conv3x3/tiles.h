// The tiles of a Winograd convolution: where their pixels lie, and transforms of both axes. Vectors
// run over channels.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/cpu_isa.h"

namespace maskrcnn {

// 16 floats; the compiler maps them to the vectors that there are.
typedef float Pack __attribute__((vector_size(64)));

ALWAYS_INLINE void load(const float* from, Pack& pack) {
  std::memcpy(&pack, from, sizeof(pack));
}
ALWAYS_INLINE void store(const Pack& pack, float* to) {
  std::memcpy(to, &pack, sizeof(pack));
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A map [N, H, W, F] in tiles of kTile x kTile pixels.
template <int kTile>
struct Tiles {
  const float* map;
  int64_t images, height, width, channels;

  int64_t rows() const { return (height + kTile - 1) / kTile; }
  int64_t columns() const { return (width + kTile - 1) / kTile; }
  int64_t count() const { return images * rows() * columns(); }

  // Addresses of kSize x kSize pixels, which begin kBefore pixels above and left of the tile. Those
  // outside of the map are at `zeros`.
  template <int kSize, int kBefore>
  ALWAYS_INLINE void find_pixels(int64_t tile,
                                 const float* zeros,
                                 const float* (&pixels)[kSize][kSize]) const {
    const int64_t column = tile % columns() * kTile, row = tile / columns() % rows() * kTile;
    const int64_t image = tile / columns() / rows();
    for (int y = 0; y < kSize; ++y) {
      for (int x = 0; x < kSize; ++x) {
        const int64_t py = row + y - kBefore, px = column + x - kBefore;
        const bool inside = py >= 0 && py < height && px >= 0 && px < width;
        pixels[y][x] = inside ? map + ((image * height + py) * width + px) * channels : zeros;
      }
    }
  }
};

// Reads channels [channel, channel + 16) of the pixels and transforms columns, then rows. Writes
// the value of point (y, x) to to[(y * kTo + x) * point_stride].
template <int kTo, int kFrom, typename F>
ALWAYS_INLINE void transform_tile(const float* const (&pixels)[kFrom][kFrom],
                                  int64_t channel,
                                  const F& transform,
                                  float* to,
                                  int64_t point_stride) {
  Pack columns[kFrom][kTo];  // [x][y]
  for (int x = 0; x < kFrom; ++x) {
    Pack d[kFrom];
    for (int y = 0; y < kFrom; ++y) load(pixels[y][x] + channel, d[y]);
    transform(d, columns[x]);
  }
  for (int y = 0; y < kTo; ++y) {
    Pack d[kFrom], t[kTo];
    for (int x = 0; x < kFrom; ++x) d[x] = columns[x][y];
    transform(d, t);
    for (int x = 0; x < kTo; ++x) store(t[x], to + (y * kTo + x) * point_stride);
  }
}

}  // namespace maskrcnn
