#!/usr/bin/env bash
# Runs tests under sanitizers: tools/sanitize.sh [address] [thread] [valgrind], by default all three.
#
#   address    the CPU extension built with AddressSanitizer and UBSan: tests/ops, and changed inputs
#              to the readers of run lengths and polygons
#   thread     the same built with ThreadSanitizer: tests/ops on 4 threads. OpenMP must tell it where
#              threads wait for each other, which LLVM's does (Debian and Ubuntu: libomp-dev)
#   valgrind   the extension as it is: run lengths and polygons under memcheck
#
# PYTHON, CXX and PYTEST_ARGS come from the environment. Builds go to build/sanitize-*. What the
# machine lacks is printed as skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
CXX=${CXX:-c++}
# Its reference implementation takes gigabytes of torch's memory, which a sanitizer does not watch.
CHOSEN="not memory_of_the_reference"

skip() {
  echo "skipped: $1 ($2)"
}

# The package and its extension, compiled with these flags, in build/sanitize-$1/lib.
build() {
  local name=$1
  shift
  CXX=$CXX CFLAGS="$* -g1" CXXFLAGS="$* -g1" LDFLAGS="$*" MASKRCNN_BUILD=cpu \
    "$PYTHON" setup.py --quiet build --build-base "build/sanitize-$name" \
    --build-lib "build/sanitize-$name/lib" --force >"build/sanitize-$name.log" 2>&1 ||
    { cat "build/sanitize-$name.log" >&2; return 1; }
}

# The compiler's runtime library, which must be loaded before Python; fails if there is none.
runtime() {
  local path
  path=$($CXX -print-file-name="$1")
  [[ $path == /* ]] && echo "$path"
}

# pytest with that build, on $2 threads, with the libraries $3 loaded first. A sanitizer's report goes
# to stderr and ends the process: pytest must not hold it back.
test_with() {
  local name=$1 threads=$2 preload=$3
  shift 3
  LD_PRELOAD=$preload OMP_NUM_THREADS=$threads "$PYTHON" -c "
import sys, pytest, torch
torch.set_num_threads($threads)
sys.exit(pytest.main(sys.argv[1:]))" -q -p no:cacheprovider -p no:xdist --capture=sys \
    -o "pythonpath=build/sanitize-$name/lib ." -k "$CHOSEN" ${PYTEST_ARGS:-} "$@"
}

address() {
  local asan ubsan preload target
  if ! asan=$(runtime libasan.so) || ! ubsan=$(runtime libubsan.so); then
    skip address "$CXX has no shared AddressSanitizer and UBSan"
    return
  fi
  preload="$asan $ubsan $(runtime libstdc++.so)"
  build address -fsanitize=address,undefined,float-cast-overflow \
    -fno-sanitize-recover=undefined,float-cast-overflow
  export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1
  test_with address 2 "$preload" tests/ops
  for target in rle polygon; do
    LD_PRELOAD=$preload PYTHONPATH=build/sanitize-address/lib \
      "$PYTHON" -m tests.fuzz.run "$target" --cases 5000
  done
}

thread() {
  local tsan openmp archer
  archer=$(ls /usr/lib/llvm-*/lib/libarcher.so 2>/dev/null | tail -n 1)
  openmp=${archer%libarcher.so}libomp.so
  if ! tsan=$(runtime libtsan.so) || [ ! -e "$openmp" ]; then
    skip thread "$CXX has no shared ThreadSanitizer, or LLVM's OpenMP is missing"
    return
  fi
  build thread -fsanitize=thread
  # Torch and Python are not compiled for it: what they do by themselves is not reported.
  TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=1:exitcode=66 \
    OMP_TOOL_LIBRARIES=$archer \
    test_with thread 4 "$tsan $openmp" tests/ops
}

valgrind() {
  if [ ! -x /usr/bin/valgrind ]; then
    skip valgrind "not installed"
    return
  fi
  # Python's own allocator takes memory in large pieces, inside of which memcheck would see nothing.
  # What it reports of other libraries is left to them.
  local log=build/sanitize-valgrind.log
  PYTHONMALLOC=malloc OMP_NUM_THREADS=1 /usr/bin/valgrind --log-file="$log" --num-callers=20 \
    "$PYTHON" -m tests.fuzz.run rle --cases 200
  PYTHONMALLOC=malloc OMP_NUM_THREADS=1 /usr/bin/valgrind --log-file="$log.2" --num-callers=20 \
    "$PYTHON" -m tests.fuzz.run polygon --cases 200
  ! grep -B 12 -A 12 '_cpu\.abi3\.so' "$log" "$log.2"  # the extension has no symbols
}

[ $# -gt 0 ] || set -- address thread valgrind
mkdir -p build
for kind; do
  echo "== $kind"
  "$kind"
done
