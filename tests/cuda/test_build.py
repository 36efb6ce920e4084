"""The CUDA kernels compile, without spilling registers. Needs nvcc, but no GPU."""

from __future__ import annotations

import pytest
import torch

from maskrcnn_scratch import ops
from tests.cuda.emulation.build import ROOT
from tools import cuda_report

SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))


@pytest.mark.skipif(cuda_report.nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_kernel_spills(source):
    kernels = cuda_report.compile_report(source, ["90"])
    assert kernels
    assert [kernel for kernel in kernels if kernel.spill_bytes] == []
    assert all(kernel.shared_bytes <= 48 << 10 for kernel in kernels)


def test_kernels_run_on_a_device():
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the CUDA kernels ran emulated only")
    assert ops.nms(torch.rand(9, 4).cuda(), torch.rand(9).cuda(), 0.5).is_cuda
