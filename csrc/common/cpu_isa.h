// Which vector instructions a CPU kernel may use, decided at run time. A kernel is written once, as
// plain loops that the compiler vectorises in a copy for each instruction set.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>

namespace maskrcnn {

enum class Isa { kBaseline, kAvx2, kAvx512 };

#if defined(__x86_64__)
#ifdef __clang__
#define WIDE_VECTORS
#else
#define WIDE_VECTORS ",prefer-vector-width=512"  // gcc takes 256 bits otherwise
#endif
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 \
  __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl" WIDE_VECTORS)))
#else
#define TARGET_AVX2
#define TARGET_AVX512
#endif
#define ALWAYS_INLINE inline __attribute__((always_inline))
#define ALWAYS_INLINE_LAMBDA __attribute__((always_inline))

// The best instruction set of this CPU. The environment variable MASKRCNN_ISA = baseline | avx2 |
// avx512 can lower it, for tests and comparisons; it is read once.
inline Isa cpu_isa() {
  static const Isa isa = [] {
    Isa best = Isa::kBaseline;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) best = Isa::kAvx2;
    if (best == Isa::kAvx2 && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      best = Isa::kAvx512;
    }
#endif
    const char* wanted = std::getenv("MASKRCNN_ISA");
    const std::string name = wanted ? wanted : "";
    const Isa limit = name == "baseline" ? Isa::kBaseline
                      : name == "avx2"   ? Isa::kAvx2
                                         : Isa::kAvx512;
    return std::min(best, limit);
  }();
  return isa;
}

template <typename F>
TARGET_AVX512 void run_avx512(const F& kernel) {
  kernel();
}
template <typename F>
TARGET_AVX2 void run_avx2(const F& kernel) {
  kernel();
}

// Runs kernel(), whose call operator and callees must be ALWAYS_INLINE, compiled for the best
// instruction set of this CPU.
template <typename F>
void with_cpu_isa(const F& kernel) {
  switch (cpu_isa()) {
    case Isa::kAvx512:
      return run_avx512(kernel);
    case Isa::kAvx2:
      return run_avx2(kernel);
    default:
      return kernel();
  }
}

}  // namespace maskrcnn
