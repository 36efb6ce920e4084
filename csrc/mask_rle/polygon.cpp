#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "rle.h"

namespace mask_rle {
namespace {

// The boundary is walked on a grid five times finer than the pixels, and is crossed by a pixel's
// column where that fine grid passes the column's centre line.
constexpr int64_t kFine = 5;
constexpr double kFarthest = 1e6;  // pixels; bounds the length of the walk

// A value on the fine grid, as the pixel coordinate of the fine cell's centre.
double to_pixel(int64_t fine) {
  return (static_cast<double>(fine) + .5) / kFine - .5;
}

int64_t to_fine(double pixel) {
  if (!(std::abs(pixel) <= kFarthest)) {
    throw std::invalid_argument("polygon coordinate " + std::to_string(pixel) +
                                " is not a place in an image");
  }
  return static_cast<int64_t>(kFine * pixel + .5);
}

struct Point {
  int64_t x, y;
};

// Visits each fine point of the edge, both ends included. Always walked from the end with the lower
// major coordinate, so that a polygon and its reverse round alike, but visited from `from` to `to`.
template <typename Visit>
void walk_edge(Point from, Point to, Visit visit) {
  const int64_t dx = std::abs(to.x - from.x), dy = std::abs(to.y - from.y);
  if (dx == 0 && dy == 0) return visit(from);
  const bool steep = dx < dy;
  const bool flip = steep ? from.y > to.y : from.x > to.x;
  if (flip) std::swap(from, to);
  const int64_t steps = steep ? dy : dx;
  const double slope = static_cast<double>(steep ? to.x - from.x : to.y - from.y) / steps;
  const int64_t minor = steep ? from.x : from.y;
  for (int64_t step = 0; step <= steps; ++step) {
    const int64_t t = flip ? steps - step : step;
    const int64_t rounded = static_cast<int64_t>(minor + slope * t + .5);
    visit(steep ? Point{rounded, from.y + t} : Point{from.x + t, rounded});
  }
}

// Places where the boundary crosses the centre line of a pixel column, as positions in column
// order; filling toggles at each.
Counts crossings(const std::vector<Point>& corners, int64_t height, int64_t width) {
  Counts positions;
  Point last = corners[0];
  const auto visit = [&](Point point) {
    if (point.x != last.x) {
      const double x = to_pixel(std::min(point.x, last.x));
      const double y = to_pixel(std::min(point.y, last.y));
      if (std::floor(x) == x && x >= 0 && x <= width - 1) {
        const double row = std::ceil(std::clamp(y, 0.0, static_cast<double>(height)));
        positions.push_back(static_cast<uint32_t>(x * height + row));
      }
    }
    last = point;
  };
  for (size_t i = 0; i < corners.size(); ++i) {
    walk_edge(corners[i], corners[(i + 1) % corners.size()], visit);
  }
  return positions;
}

}  // namespace

Counts from_polygon(const double* xy, int64_t points, int64_t height, int64_t width) {
  std::vector<Point> corners(points);
  for (int64_t i = 0; i < points; ++i) corners[i] = {to_fine(xy[2 * i]), to_fine(xy[2 * i + 1])};
  Counts toggles = crossings(corners, height, width);
  std::sort(toggles.begin(), toggles.end());

  RunWriter out;
  uint32_t last = 0;
  bool on = false;
  toggles.push_back(static_cast<uint32_t>(height * width));
  for (uint32_t toggle : toggles) {
    out.push(on, toggle - last);
    on = !on;
    last = toggle;
  }
  return out.finish();
}

}  // namespace mask_rle
