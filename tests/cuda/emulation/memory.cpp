// Memory as the emulated threads see it: shared memory that nobody has written, and data races.
//
// Kernels are compiled with -fsanitize=thread: the compiler then calls a function before each
// access. ThreadSanitizer's own functions know threads and locks, not blocks and warps, so these
// take their place. Two accesses of an address race if one of them writes, not both are atomic, and
// nothing orders them: threads of one block are ordered by barriers, lanes by primitives of their
// warp, blocks of a launch by nothing, launches by the stream.
#include <cuda_runtime.h>
#include <link.h>

#include <memory>
#include <unordered_map>

#include "runtime.h"

namespace emulated {
namespace {

// Shared memory is thread-local in C++, so it lies in one range: the library's thread-local block.
struct Range {
  char *begin = nullptr, *end = nullptr;
  bool contains(const void* address) const { return address >= begin && address < end; }
};

thread_local volatile char anchor = 0;  // its use allocates the block

Range shared_memory() {
  anchor = 1;
  Range range;
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* result) {
        bool own = false;
        size_t bytes = 0;
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const ElfW(Phdr) & part = library->dlpi_phdr[i];
          const auto begin = library->dlpi_addr + part.p_vaddr;
          const auto here = reinterpret_cast<uintptr_t>(&now);
          if (part.p_type == PT_LOAD) own |= here >= begin && here < begin + part.p_memsz;
          if (part.p_type == PT_TLS) bytes = part.p_memsz;
        }
        if (!own) return 0;
        auto* begin = static_cast<char*>(library->dlpi_tls_data);
        *static_cast<Range*>(result) = {begin, begin + bytes};
        return 1;
      },
      &range);
  return range;
}

// When and by which thread an address was accessed. Several: by more lanes of its warp.
struct Access {
  uint64_t time : 48 = 0, thread : 10 = 0, several : 1 = 0, atomic : 1 = 0;
};
struct Cell {
  Access write, reads[2];  // the last reads of two warps
};
constexpr uintptr_t kPageCells = 1024;
using Page = std::array<Cell, kPageCells>;

Range shared;
bool recording = false;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_key = 0;
Page* last_page = nullptr;

// The cell of four bytes, or of one where fewer than four are accessed at a time.
Cell& cell_of(uintptr_t address, bool is_word) {
  const uintptr_t index = is_word ? address / 4 : address;
  const uintptr_t key = index / kPageCells * 2 + is_word;
  if (last_page == nullptr || key != last_key) {
    std::unique_ptr<Page>& page = pages[key];
    if (!page) page = std::make_unique<Page>();
    last_key = key;
    last_page = page.get();
  }
  return (*last_page)[index % kPageCells];
}

bool races(const Access& before, bool is_shared) {
  if (before.time < (is_shared ? now.block : now.launch)) return false;
  if (before.time < now.block) return true;
  if (before.time < now.barrier) return false;
  if (before.thread / kWarp != now.thread / kWarp) return true;
  if (before.thread == now.thread && !before.several) return false;
  return before.time >= now.warp[now.thread] || before.time >= now.warp[before.thread];
}

enum Kind { kRead, kWrite, kAtomic };

void record(Cell& cell, Kind kind, const void* address) {
  const bool is_shared = shared.contains(address);
  const bool atomics = kind == kAtomic && cell.write.atomic;
  bool found = !atomics && races(cell.write, is_shared);
  if (kind != kRead) {
    for (const Access& read : cell.reads) found |= races(read, is_shared);
  }
  if (found) {
    const bool between_blocks = !is_shared && cell.write.time < now.block;
    fail(std::string("data race between ") + (between_blocks ? "blocks" : "threads") + " in " +
         (is_shared ? "shared" : "global") + " memory");
  }
  const Access access{now.time, now.thread, 0, kind == kAtomic};
  if (kind != kRead) {
    cell.write = access;
    return;
  }
  Access& last = cell.reads[0];
  if (last.time < now.barrier) {
    if (races(last, is_shared)) cell.reads[1] = last;  // of another block
    last = access;
  } else if (last.thread / kWarp == now.thread / kWarp) {
    const bool several = (last.several || last.thread != now.thread) && races(last, is_shared);
    last = access;
    last.several = several;
  } else {
    cell.reads[1] = last;
    last = access;
  }
}

void record(Kind kind, const void* address, size_t bytes) {
  if (!recording || !now.in_kernel) return;
  if (address >= now.stack_begin && address < now.stack_end) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (bytes < 4) {
    record(cell_of(begin, false), kind, address);
    return;
  }
  for (uintptr_t at = begin / 4 * 4; at < begin + bytes; at += 4) {
    record(cell_of(at, true), kind, reinterpret_cast<void*>(at));
  }
}

}  // namespace

void poison_shared_memory() {
  shared = shared_memory();
  std::memset(shared.begin, 0xFF, shared.end - shared.begin);
}

void begin_recording(bool races_are_errors) {
  constexpr size_t kMostPages = 4000;  // of 24 KB
  recording = races_are_errors;
  if (pages.size() > kMostPages) pages.clear(), last_page = nullptr;
}

void record_atomic(const void* address, unsigned bytes) {
  record(kAtomic, address, bytes);
}

}  // namespace emulated

#define ACCESS(bytes)                              \
  void __tsan_read##bytes(void* at) {              \
    emulated::record(emulated::kRead, at, bytes);  \
  }                                                \
  void __tsan_write##bytes(void* at) {             \
    emulated::record(emulated::kWrite, at, bytes); \
  }                                                \
  void __tsan_unaligned_read##bytes(void* at) {    \
    __tsan_read##bytes(at);                        \
  }                                                \
  void __tsan_unaligned_write##bytes(void* at) {   \
    __tsan_write##bytes(at);                       \
  }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* at, size_t bytes) {
  emulated::record(emulated::kRead, at, bytes);
}
void __tsan_write_range(void* at, size_t bytes) {
  emulated::record(emulated::kWrite, at, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {  // clang calls it
  emulated::record(emulated::kRead, from, bytes);
  emulated::record(emulated::kWrite, to, bytes);
  return std::memcpy(to, from, bytes);
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Of host code: reference counts.
int __tsan_atomic32_fetch_add(volatile int* to, int value, int) {
  return __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL);
}
}
