#!/usr/bin/env bash
# All checks that need a GPU, in under ten minutes and without a network: build, tests, parity with
# torchvision's CUDA ops, compute-sanitizer, benchmarks. Prints one table and writes
# tools/results/<device>.json, whether the steps succeed or not.
#
#   tools/gpu_check.sh            PYTHON=/path/to/python with torch, torchvision, pytest, hypothesis
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
LOGS=${LOGS:-$(mktemp -d)}
"$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
  { echo "error: $PYTHON has no torch that sees a GPU; name another: PYTHON=..." >&2; exit 1; }
export MASKRCNN_BUILD=cuda MAX_JOBS=${MAX_JOBS:-8} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
mkdir -p "$LOGS"
: >"$LOGS/steps.tsv"

# step NAME SECONDS COMMAND...: runs a step with a time limit, and keeps its log and exit status. The
# limits add up to less than ten minutes.
step() {
  local name=$1 limit=$2 begin=$SECONDS status=0
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$LOGS/$name.log" 2>&1 || status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begin)) >>"$LOGS/steps.tsv"
  tail -n 4 "$LOGS/$name.log"
}
skip() {
  echo "== $1: not run, $2"
  printf '%s\tskipped: %s\t0\n' "$1" "$2" >>"$LOGS/steps.tsv"
}

step build 120 "$PYTHON" setup.py build_ext --inplace
step device_tests 60 "$PYTHON" -m pytest -q -p no:cacheprovider tests/cuda -k device
step tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/ops tests/gradients tests/model tests/training
step parity 60 "$PYTHON" tools/parity.py ops modules stages model losses --device cuda --min-size 400 --json "$LOGS/parity.json"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
for tool in memcheck racecheck; do
  if [ -n "$sanitizer" ]; then
    step "$tool" 45 "$sanitizer" --tool "$tool" --error-exitcode 9 --kernel-name-exclude kns=at:: \
      "$PYTHON" tools/gpu_check.py small
  else
    skip "$tool" "compute-sanitizer not found"
  fi
done
step kernels 30 "$PYTHON" tools/gpu_check.py kernels --json "$LOGS/kernels.json"
step benchmark 115 "$PYTHON" tools/benchmark.py ops e2e options train launches --device cuda \
  --seconds 2 --json "$LOGS/benchmark.json"
"$PYTHON" tools/gpu_check.py collect "$LOGS"
