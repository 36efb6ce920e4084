"""The emulation finds bugs that are planted in the kernels; all kernels run under sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from maskrcnn_scratch.ops._library import kernels
from tests.cuda.emulation.build import ROOT, load_emulated
from tests.cuda.test_nms import problem

OPS = ("roi_align", "nms", "paste_masks", "paste_masks_packed")
READ = "const Word found = kept_word;"  # which one thread has written
BARRIER = f"__syncthreads();\n        {READ}"
PAST_THE_END = ("if (first >= pixels) break;", "if (first > pixels) break;")


@pytest.fixture
def order(monkeypatch):
    return lambda name: monkeypatch.setenv("EMULATED_ORDER", name)


def test_missing_barrier_is_found(order):
    """Some order of the threads gives a wrong keep list."""
    broken = load_emulated(64, only="nms", planted=(BARRIER, READ))
    sound = load_emulated(64)
    found = []
    for name in ("forward", "backward", "shuffled"):
        order(name)
        for groups, max_out in ((2, 20), (5, 30), (1, 40)):
            arguments = (*problem(1, 150, groups, empty=0.0), 0.4, max_out, groups)
            expected, _ = kernels.nms_padded(*arguments)
            assert torch.equal(sound.nms_padded(*arguments)[0], expected)
            try:
                found.append(not torch.equal(broken.nms_padded(*arguments)[0], expected))
            except RuntimeError:  # threads that read another value reach other barriers
                found.append(True)
    assert any(found)


def test_barrier_that_some_threads_miss_is_found(order):
    order("forward")
    reached_by_half = BARRIER.replace("__syncthreads()", "if (threadIdx.x < 32) __syncthreads()")
    broken = load_emulated(64, only="nms", planted=(BARRIER, reached_by_half))
    with pytest.raises(RuntimeError):
        broken.nms_padded(*problem(1, 150, 2), 0.4, 20, 2)


def test_result_does_not_depend_on_the_number_of_blocks(order, monkeypatch):
    order("shuffled")
    arguments = (*problem(3, 150, 2), 0.4, 150, 2)
    expected, _ = kernels.nms_padded(*arguments)
    for blocks in ("1", "2", "50"):
        monkeypatch.setenv("EMULATED_BLOCKS", blocks)
        assert torch.equal(load_emulated(64).nms_padded(*arguments)[0], expected)


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with AddressSanitizer and UBSan loaded before everything else."""
    compiler = os.environ.get("CXX", "c++").split()
    preload = [
        subprocess.check_output([*compiler, f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    if not all(os.path.isabs(path) for path in preload):
        pytest.skip(f"{compiler[0]} has no shared AddressSanitizer and UBSan runtimes")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0",
        "EMULATED_SANITIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_kernels_under_sanitizers():
    """One order of the threads is enough: sanitizers see the same accesses in each."""
    files = [f"tests/cuda/test_{op}.py" for op in OPS]
    chosen = "shuffled and not 32_bits and not float16 and not raises and not bad_arguments"
    result = run_sanitized(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *files
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


def test_off_by_one_is_found_by_the_sanitizer():
    script = (
        "import torch; from tests.cuda.emulation.build import load_emulated; "
        f"ops = load_emulated(64, sanitize=True, only='paste_masks', planted={PAST_THE_END!r}); "
        # Pixels fill the threads' vectors exactly, so that one more thread writes past the end.
        "ops.paste_masks(torch.ones(1, 1, 2, 2), torch.ones(1, 4), 16, 16)"
    )
    result = run_sanitized("-c", script)
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr
