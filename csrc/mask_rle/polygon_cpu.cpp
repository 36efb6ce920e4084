#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "rle.h"
#include "toggles.h"

namespace mask_rle {
namespace {

// pycocotools draws the edges of a polygon on a grid five times finer than the pixels, one fine
// column (or row, for a steep edge) at a time. A pixel column counts an edge where the edge passes
// the column's centre line, which lies between the fine columns 5x + 2 and 5x + 3. Only these
// points are computed here, so the cost per edge is the width of the image, however far its ends
// lie.
constexpr int64_t kFine = 5;
constexpr int64_t kFewColumns = 8;  // fewer crossings are added one by one
constexpr double kFarthest = 1e6;   // pixels: farther corners are taken for damaged data

// A position on the fine grid, as the pixel coordinate of the fine cell's centre.
double to_pixel(int64_t fine) {
  return (static_cast<double>(fine) + .5) / kFine - .5;
}

int64_t to_fine(double pixel) {
  if (!(std::abs(pixel) <= kFarthest)) {
    throw std::invalid_argument("polygon coordinate " + std::to_string(pixel) +
                                " is not finite or more than 1e6 pixels away");
  }
  return static_cast<int64_t>(kFine * pixel + .5);
}

struct Point {
  int64_t x, y;
};

// An edge as pycocotools walks it: from the end with the lower major coordinate, a fine cell per
// step, so that a polygon and its reverse round alike. The minor coordinate is rounded at each
// step.
class Edge {
 public:
  Edge(Point a, Point b) : steep_(std::abs(b.x - a.x) < std::abs(b.y - a.y)) {
    if (steep_ ? a.y > b.y : a.x > b.x) std::swap(a, b);
    from_ = a;
    left_ = std::min(a.x, b.x);
    right_ = std::max(a.x, b.x);
    steps_ = steep_ ? b.y - a.y : b.x - a.x;
    if (steps_ > 0) slope_ = static_cast<double>(steep_ ? b.x - a.x : b.y - a.y) / steps_;
  }

  // Adds where the edge passes the centre lines of pixel columns. Its rows never turn back, so
  // where the first and the last one lie on the same side of the mask, all do.
  void add_crossings(int64_t height, int64_t width, Toggles& toggles) const {
    const int64_t begin = left_ <= 2 ? 0 : (left_ - 2 + kFine - 1) / kFine;
    const int64_t end = std::min(width, (right_ - 3 + kFine) / kFine);
    if (begin >= end) return;
    if (end - begin > kFewColumns) {
      const int64_t first = crossing(begin, height), last = crossing(end - 1, height);
      if (first == last && (first == 0 || first == height)) {
        return toggles.add_to_columns(begin, end, first);
      }
    }
    for (int64_t column = begin; column < end; ++column) {
      toggles.add(column, crossing(column, height));
    }
  }

 private:
  // The row in 0-height below the crossing of a column's centre line. The edge is in the upper one
  // of two fine cells beside the line.
  int64_t crossing(int64_t column, int64_t height) const {
    const int64_t x = kFine * column + 2, y = steep_ ? steep_crossing(x) : flat_crossing(x);
    return static_cast<int64_t>(std::ceil(std::clamp(to_pixel(y), 0.0, double(height))));
  }

  // The minor coordinate after `step` steps.
  int64_t minor(int64_t step) const {
    return static_cast<int64_t>((steep_ ? from_.x : from_.y) + slope_ * step + .5);
  }

  // Each step goes one fine column to the right.
  int64_t flat_crossing(int64_t x) const {
    return std::min(minor(x - from_.x), minor(x + 1 - from_.x));
  }

  // Each step goes one fine row down. Some step goes from x to x + 1, or back if the edge leans
  // left.
  int64_t steep_crossing(int64_t x) const {
    const auto is_before = [&](int64_t step) {
      return slope_ > 0 ? minor(step) <= x : minor(step) > x;
    };
    const double estimate = (static_cast<double>(x - from_.x) + .5) / slope_;
    int64_t step = static_cast<int64_t>(std::clamp(estimate, 0., static_cast<double>(steps_ - 1)));
    while (step > 0 && !is_before(step)) --step;  // the estimate is off by a step or so
    while (step + 1 < steps_ && is_before(step + 1)) ++step;
    return from_.y + step;
  }

  bool steep_;
  Point from_;
  int64_t left_, right_, steps_;
  double slope_ = 0;
};

}  // namespace

Counts from_polygon(const double* xy, int64_t points, int64_t height, int64_t width) {
  std::vector<Point> corners(points);
  for (int64_t i = 0; i < points; ++i) corners[i] = {to_fine(xy[2 * i]), to_fine(xy[2 * i + 1])};
  Toggles toggles(height, width);
  for (int64_t i = 0; i < points; ++i) {
    Edge(corners[i], corners[(i + 1) % points]).add_crossings(height, width, toggles);
  }
  return toggles.finish();
}

}  // namespace mask_rle
