"""What the documentation says of processes that are forked."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, torch
from maskrcnn_scratch.ops import paste_masks
torch.set_num_threads(2)

def work():
    boxes = torch.tensor([[0.0, 0, 200, 200]]).repeat(50, 1)
    paste_masks(torch.rand(50, 1, 28, 28), boxes, (400, 400))
    (torch.rand(3000, 1000) + 1).sum()

work()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    work()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
def test_a_forked_child_computes_with_one_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "0\n"
