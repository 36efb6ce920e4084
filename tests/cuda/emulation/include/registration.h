// Included before everything else when kernels are emulated: they register for CPU tensors, in a
// namespace of their own (EMULATED_NAMESPACE).
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(name, m) EMULATED_LIBRARY(EMULATED_NAMESPACE, m)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(EMULATED_NAMESPACE, CPU, m, C10_UID)

#define EMULATED_LIBRARY(name, m)                                                             \
  static void define_emulated(torch::stable::detail::StableLibrary&);                         \
  static const torch::stable::detail::StableTorchLibraryInit emulated_init(                   \
      torch::stable::detail::StableLibrary::Kind::DEF, &define_emulated, C10_STRINGIZE(name), \
      nullptr, __FILE__, __LINE__);                                                           \
  void define_emulated(torch::stable::detail::StableLibrary& m)
