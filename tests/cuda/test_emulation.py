"""The emulation finds bugs that are planted in the kernels; all kernels run under sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

from maskrcnn_scratch.ops._library import kernels
from tests.cuda.conftest import uninitialized_is_filled
from tests.cuda.emulation.build import COMPILER, ROOT, build_emulated, load_emulated
from tests.cuda.test_nms import problem

pytestmark = pytest.mark.slow

OPS = (
    "roi_align", "nms", "paste_masks", "paste_masks_packed", "top_k", "max_iou", "decode_boxes",
    "fpn_levels",
)  # fmt: skip
READ = "const Word alive = ~removed[w]"  # and of own_words, which 64 threads have written
BARRIER = f"__syncthreads();\n        {READ}"


@pytest.fixture
def order(monkeypatch):
    return lambda name: monkeypatch.setenv("EMULATED_ORDER", name)


def test_missing_barrier_is_found(order):
    """Some order of the threads gives a wrong keep list."""
    broken = load_emulated(64, only="nms/nms", planted=(BARRIER, READ))
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
    broken = load_emulated(64, only="nms/nms", planted=(BARRIER, reached_by_half))
    with pytest.raises(RuntimeError):
        broken.nms_padded(*problem(1, 150, 2), 0.4, 20, 2)


def test_result_does_not_depend_on_the_number_of_blocks(order, monkeypatch):
    order("shuffled")
    arguments = (*problem(3, 150, 2), 0.4, 150, 2)
    expected, _ = kernels.nms_padded(*arguments)
    for blocks in ("1", "2", "50"):
        monkeypatch.setenv("EMULATED_BLOCKS", blocks)
        assert torch.equal(load_emulated(64).nms_padded(*arguments)[0], expected)


# The emulation runs one thread at a time, so these kernels give the right result.
RACES = {
    "an atomic of several blocks is removed": (
        "atomicAdd(&total.offset, sum.offset)",
        "total.offset += sum.offset",
        "between blocks in global memory",
    ),
    "an atomic of several threads is removed": (
        "if (found >> row & 1) atomic_or(&removed[word], rows[int64_t(row) * a.words + word]);",
        "if (found >> row & 1) removed[word] |= rows[int64_t(row) * a.words + word];",
        "between threads in shared memory",
    ),
    "two phases without a barrier between blocks": (
        "if (own < end || a.suppressed[group + own]) continue;",
        "if (own < end || a.suppressed[group + (own > end ? own - 1 : own)]) continue;",
        "between (blocks|threads) in global memory",
    ),
}


@pytest.mark.parametrize("bug", RACES)
def test_data_race_is_found(bug, order, monkeypatch):
    order("shuffled")
    text, replacement, message = RACES[bug]
    broken = load_emulated(64, only="nms/nms", planted=(text, replacement))
    boxes, scores, groups = problem(1, 10_300 if "phases" in bug else 150, 1, side=9.0, empty=0.0)
    if "phases" in bug:  # a group of more than one chunk, all of which is kept
        scores[0, 2300:] = -torch.inf
    arguments = (boxes, scores, groups, 1.0, 10_300 if "phases" in bug else 150, 1)
    expected, _ = kernels.nms_padded(*arguments)
    monkeypatch.setenv("EMULATED_RACES", "0")
    assert torch.equal(broken.nms_padded(*arguments)[0], expected)
    monkeypatch.setenv("EMULATED_RACES", "1")
    with pytest.raises(RuntimeError, match=f"data race {message}"):
        broken.nms_padded(*arguments)
    with pytest.raises(RuntimeError, match="data race"):  # after an error too
        broken.nms_padded(*arguments)


def test_data_race_in_a_list_of_rois_is_found(order, monkeypatch):
    """A tile's lists, of 1,024 RoIs each: the second is written while the first is read."""
    order("shuffled")
    monkeypatch.setenv("EMULATED_RACES", "1")
    rois = torch.tensor([[0.0, 0, 0, 7, 7]]).repeat(1030, 1)
    arguments = (
        torch.ones(1030, 1, 1, 1), rois, torch.zeros(1030, dtype=torch.int64), [1.0], [8], [8], 1,
        1, False, True, True,
    )  # fmt: skip
    barrier = ("__syncthreads();  // nobody reads the last list", "")
    broken = load_emulated(64, only="roi_align/roi_align_backward", planted=barrier)
    with pytest.raises(RuntimeError, match="data race between threads in shared memory"):
        broken.multiscale_roi_align_backward(*arguments)


def test_wrong_mask_of_a_warp_primitive_is_found(order):
    order("forward")
    call = ("__ballot_sync(~0u, is_valid)", "__ballot_sync(~0u >> 1, is_valid)")
    broken = load_emulated(64, only="nms/nms", planted=call)
    with pytest.raises(RuntimeError, match=r"thread 31: line .* mask .* does not name its lane"):
        broken.nms_padded(*problem(1, 150, 2), 0.4, 20, 2)


def test_empty_grid_is_found(order):
    order("forward")
    broken = load_emulated(
        64, only="paste_masks/paste_masks", planted=("if (items == 0) return;", "")
    )
    with pytest.raises(RuntimeError, match="paste_all: invalid configuration argument"):
        broken.paste_masks(torch.rand(0, 1, 5, 5), torch.rand(0, 4), 9, 9)


def test_uninitialized_shared_memory_is_found(order):
    """Static memory is zero at first, which is what the kernel lacks."""
    order("forward")
    clear = ("for (int w = threadIdx.x; w < a.words; w += kThreads) removed[w] = 0;", "")
    broken = load_emulated(64, only="nms/nms", planted=clear)
    arguments = (*problem(1, 50, 1), 0.4, 20, 1)
    assert kernels.nms_padded(*arguments)[1].item() > 0
    assert broken.nms_padded(*arguments)[1].item() == 0


def test_uninitialized_global_memory_is_found(order):
    """Fresh memory is often zero, which is what the kernel lacks."""
    order("forward")
    padding = ("if (rank >= total) a.indices[i] = 0;", "")
    broken = uninitialized_is_filled(load_emulated(64, only="nms/nms", planted=padding).nms_padded)
    indices, count = broken(*problem(1, 50, 1), 0.4, 50, 1)
    assert count.item() < 50
    assert indices[0, count.item() :].min() == torch.iinfo(torch.int64).max


def test_shared_memory_fits():
    """No kernel takes more than the 48 KiB that a block may have without asking."""
    library = build_emulated(256)
    symbols = subprocess.check_output(["nm", "--size-sort", "-S", "-C", str(library)], text=True)
    taken: Counter[str] = Counter()
    for line in symbols.splitlines():
        _, size, _, name = line.split(" ", 3)
        if found := re.search(r"(\w+(<[^()]*>)?)\(maskrcnn::.*\)::\w+$", name):
            taken[found[1]] += int(size, 16)
    assert taken["nms_sweep<float>"] == 160 * 8 + 64 * 8
    assert len(taken) > 20
    assert max(taken.values()) <= 48 << 10


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with AddressSanitizer and UBSan loaded before everything else."""
    preload = [
        subprocess.check_output([*COMPILER, f"-print-file-name=lib{name}.so"], text=True).strip()
        for name in ("asan", "ubsan")
    ]
    if not all(os.path.isabs(path) for path in preload):
        pytest.skip(f"{COMPILER[0]} has no shared AddressSanitizer and UBSan runtimes")
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
    build_emulated(64, sanitize=True)  # here, because a compiler is slow under a sanitizer
    files = [f"tests/cuda/test_{op}.py" for op in OPS]
    chosen = "shuffled and not 32_bits and not float16 and not raises and not bad_arguments"
    result = run_sanitized(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, *files
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


SANITIZED = {
    # The last 16 bytes hold one pixel of the image; all of them are written.
    "past the end": (
        "paste_masks/paste_masks",
        ("if (in_image && (in_row || !in_box)) {", "if (in_row || !in_box) {"),
        "ops.paste_masks(torch.ones(1, 1, 2, 2), torch.ones(1, 4), 15, 15)",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    # An infinite side becomes the least integer on x86, which gives the right result there.
    "infinity as an integer": (
        "paste_masks/paste_masks",
        ("last > -limit && last < limit", "last > -limit"),
        "ops.paste_masks(torch.ones(1, 1, 2, 2), 2.0**100 * torch.tensor([[1, 1, 3, 3]]), 16, 16)",
        "is outside the range of representable values",
    ),
    # x86 reads vectors at any address, CUDA does not.
    "misaligned base": (
        "roi_align/roi_align",
        ("if (!is_aligned(feature.const_data_ptr<S>(), v * sizeof(S))) return false;", ""),
        "map = torch.rand(8 * 9 * 4 + 1)[1:].view(1, 8, 9, 4).permute(0, 3, 1, 2);"
        "ops.multiscale_roi_align([map], torch.tensor([[0, 1, 1, 5, 5.]]), "
        "torch.zeros(1, dtype=torch.int64), [1.0], 2, 2, 2, False, False)",
        "misaligned address",
    ),
}


@pytest.mark.parametrize("bug", SANITIZED)
def test_bug_is_found_by_a_sanitizer(bug):
    only, planted, call, message = SANITIZED[bug]
    build_emulated(64, sanitize=True, only=only, planted=planted)
    script = (
        "import torch; from tests.cuda.emulation.build import load_emulated; "
        f"ops = load_emulated(64, sanitize=True, only={only!r}, planted={planted!r}); {call}"
    )
    result = run_sanitized("-c", script)
    assert result.returncode != 0
    assert message in result.stderr
