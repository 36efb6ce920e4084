// Included before everything else when kernels are emulated: they register for CPU tensors, in a
// namespace of their own, which build.py defines.
#pragma once

#include <torch/csrc/stable/library.h>

extern const char emulated_namespace[];

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(name, m) EMULATED_LIBRARY(DEF, nullptr, m)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) EMULATED_LIBRARY(IMPL, "CPU", m)

#define EMULATED_LIBRARY(kind, key, m)                                                          \
  static void register_emulated(torch::stable::detail::StableLibrary&);                         \
  static const torch::stable::detail::StableTorchLibraryInit emulated_init(                     \
      torch::stable::detail::StableLibrary::Kind::kind, &register_emulated, emulated_namespace, \
      key, __FILE__, __LINE__);                                                                 \
  void register_emulated(torch::stable::detail::StableLibrary& m)
