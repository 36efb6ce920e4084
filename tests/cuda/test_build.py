"""The CUDA kernels compile, without spilling registers. Needs nvcc, but no GPU."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_scratch import ops
from tests.cuda.emulation.build import ROOT
from tools import cuda_report

pytestmark = pytest.mark.slow

SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
# Kernels with instructions per unit: one that is renamed, or whose marker the compiler replaces,
# must not go unnoticed.
COUNTED = {
    "max_iou_cuda": {"best_of_gt", "match_boxes"},
    "nms_cuda": {"nms_compare", "nms_rank"},
    "paste_masks_cuda": {"paste_all"},
    "paste_masks_packed_cuda": {"paste_packed"},
    "roi_align_backward_cuda": {"roi_align_backward_atomic", "roi_align_backward_deterministic"},
    "roi_align_cuda": {"roi_align_forward_vectors"},
}


@pytest.fixture(scope="module")
def built() -> dict[str, list[cuda_report.Kernel]]:
    """The kernels that setup.py compiled, by source; empty if it compiled none for sm_90."""
    library = ROOT / "maskrcnn_scratch" / "_cuda.abi3.so"
    if not library.exists() or cuda_report.cuobjdump() is None:
        return {}
    return cuda_report.library_report(library, "90")


@pytest.mark.skipif(cuda_report.nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_kernel_spills(source, built):
    """Without a stack frame nothing is spilled; of a kernel with one, only the compiler knows."""
    kernels = built.get(source.name, [])
    if not kernels or any(kernel.spill_bytes for kernel in kernels):
        kernels = cuda_report.compile_report(source, ["90"])
    assert kernels
    assert [kernel for kernel in kernels if kernel.spill_bytes] == []
    assert all(kernel.shared_bytes <= 48 << 10 for kernel in kernels)
    if cuda_report.cuobjdump() is not None:
        assert any(kernel.loop for kernel in kernels)
        counted = {kernel.name.partition("<")[0] for kernel in kernels if kernel.per_unit}
        assert counted == COUNTED.get(source.stem, set())


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
                                                           /* 0x0000000102027810 */
        /*0020*/                   FADD R3, R3, R4 ;
        /*0030*/               @P0 BRA 0x20 ;
        /*0040*/               @P1 BRA 0x90 ;
        /*0050*/              @!P2 BRA P3, 0x10 ;
        /*0060*/                   FMUL R3, R3, R4 ;
        /*0070*/                   FMUL R3, R3, R5 ;
        /*0080*/               @P0 BRA 0x60 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
"""


def test_longest_innermost_loop():
    """Not the loop around another, nor the branch to itself at the end."""
    assert cuda_report.longest_innermost_loop(SASS) == 3


def test_instructions_per_unit():
    """A loop of 9 instructions that stores 4 + 1 elements; a longer one that stores none."""
    body = (
        ["@!P1 STG.E.128 [R2.64+0x4], R4"]
        + ["FADD R1, R1, R2"] * 6
        + ["STG.E [R2.64], R4", "@P0 BRA 0x10"]
    )
    idle = ["FADD R1, R1, R2"] * 20 + ["@P0 BRA 0xa0"]
    lines = ["EXIT", *body, *idle]
    sass = "".join(f"/*{16 * i:04x}*/ {text} ;\n" for i, text in enumerate(lines))
    assert cuda_report.longest_innermost_loop(sass) == 21
    vectors = "roi_align_forward_vectors<{}, 2, true>"
    assert cuda_report.instructions_per_unit(sass, vectors.format("float")) == 9 / 5
    assert cuda_report.instructions_per_unit(sass, vectors.format("double")) == 9 / 2.5
    assert cuda_report.instructions_per_unit(sass, "paste_all<float, float>") == 9 / 4
    assert cuda_report.instructions_per_unit(sass, "nms_compare<float>") is None
    loads = sass.replace("ST", "LD")
    assert cuda_report.instructions_per_unit(loads, "roi_align_backward_atomic<float, 4>") == 9 / 5
    assert cuda_report.instructions_per_unit(sass, "nms_sort<float>") is None


def test_loop_with_another_inside():
    """The main loop has 3 instructions and a loop that makes nothing; it lies in one that does."""
    lines = ["STG.E.128 [R2.64], R4", "FADD R1, R1, R2", "FADD R1, R1, R2", "FADD R1, R1, R2"]
    lines += ["STG.E [R2.64], R4", "@P0 BRA 0x20", "STG.E.128 [R2.64], R4", "@P1 BRA 0x10"]
    lines += ["@P2 BRA 0x0"]
    sass = "".join(f"/*{16 * i:04x}*/ {text} ;\n" for i, text in enumerate(lines))
    assert cuda_report.longest_innermost_loop(sass) == 4
    assert cuda_report.instructions_per_unit(sass, "paste_all<float, float>") == 3 / 4


def test_kernels_run_on_a_device():
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the CUDA kernels ran emulated only")
    assert ops.nms(torch.rand(9, 4).cuda(), torch.rand(9).cuda(), 0.5).is_cuda
