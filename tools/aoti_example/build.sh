#!/bin/sh
# Builds detect.cpp: tools/aoti_example/build.sh OUTPUT (PYTHON and CXX from the environment).
set -eu
PYTHON=${PYTHON:-python3}
find='from importlib.util import find_spec; print(find_spec'
torch=$("$PYTHON" -c "$find('torch').submodule_search_locations[0])")
operators=$("$PYTHON" -c "$find('maskrcnn_scratch._cpu').origin)")
# The library of operators is also a Python module. With lazy binding, Python's symbols are looked up
# only when Python calls it.
exec "${CXX:-c++}" -std=c++20 -O1 "$(dirname "$0")/detect.cpp" -o "$1" \
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" \
  -Wl,--no-as-needed "$operators" -L"$torch/lib" -ltorch -ltorch_cpu -lc10 \
  -Wl,--allow-shlib-undefined -Wl,-z,lazy \
  -Wl,-rpath,"$torch/lib" -Wl,-rpath,"$(dirname "$operators")"
