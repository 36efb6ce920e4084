// Mask R-CNN without Python: runs a package made by `maskrcnn export --format aoti --batch N`, with
// N of two or more, on N images of the size that it was exported for.
//
//   detect model.pt2 image.ppm ...
//
// Prints one line per detection: label, score, x1, y1, x2, y2, number of mask pixels above 0.5. It
// needs libtorch and the library of operators, which build.sh links.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// A binary PPM (P6, 8 bits per channel) as floats in 0-1, [3, height, width].
at::Tensor read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  file.get();
  if (!file || magic != "P6" || most != 255) {
    throw std::runtime_error(path + ": not a binary PPM of 8 bits per channel");
  }
  auto pixels = at::empty({height, width, 3}, at::kByte);
  file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel());
  if (file.gcount() != pixels.numel()) {
    throw std::runtime_error(path + ": ends too early");
  }
  return pixels.permute({2, 0, 1}).to(at::kFloat).div(255);
}

void print_detections(const std::vector<at::Tensor>& outputs, int64_t n) {
  const auto boxes = outputs.at(0)[n], labels = outputs.at(1)[n], scores = outputs.at(2)[n];
  const auto masks = outputs.at(3)[n];  // [D, 1, height, width]
  const auto number = outputs.at(4)[n].item<int64_t>();
  for (int64_t d = 0; d < number; ++d) {
    std::cout << labels[d].item<int64_t>() << ' ' << scores[d].item<float>();
    for (int64_t side = 0; side < 4; ++side) std::cout << ' ' << boxes[d][side].item<float>();
    std::cout << ' ' << masks[d].gt(0.5).sum().item<int64_t>() << '\n';
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: detect model.pt2 image.ppm ...\n";
    return 2;
  }
  try {
    const c10::InferenceMode inference;
    std::vector<at::Tensor> images;
    for (int i = 2; i < argc; ++i) images.push_back(read_image(argv[i]));
    torch::inductor::AOTIModelPackageLoader package(argv[1]);
    const auto outputs = package.run({at::stack(images)});  // in the order of ExportOptions
    for (int i = 2; i < argc; ++i) print_detections(outputs, i - 2);
  } catch (const std::exception& error) {
    std::cerr << "detect: " << error.what() << '\n';
    return 1;
  }
}
