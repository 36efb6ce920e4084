"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.memory import return_free_memory

if TYPE_CHECKING:  # the process that starts the workers imports neither
    import numpy as np

    from maskrcnn_scratch.mask_rcnn import MaskRCNN

# With --fast, these run with all of their parameters, which are what different modules do.
WHOLE = (
    "tests/component_check/test_broken_parts.py::test_broken_part_fails_for_its_reason",
    "tests/data/formats/test_formats.py::test_the_object_is_read",
)
# What runs first: the longest tests, so that none of them is the last of its worker. Those of
# tests/parity wait for each other; those of tests/export share files of one worker.
FIRST = ("tests/parity/", "tests/export/", "tests/cuda/test_emulation.py::test_kernels_under_")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="each test function once, without the slow ones"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``FIRST``. With ``--fast`` one set of parameters of each test that is not marked slow."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if not config.getoption("--fast"):
        return
    seen: set[str] = set()
    kept = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        is_new = function not in seen or function in WHOLE
        if is_new and item.get_closest_marker("slow") is None:
            kept.append(item)
        seen.add(function)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish() -> None:
    """The garbage collector passes over what all tests share: most objects of a process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 50)


@pytest.fixture(scope="module", autouse=True)
def heap() -> Iterator[None]:
    """The free part of the heap goes back after each file: it grew to 2 GB over the folders."""
    yield
    return_free_memory()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that MASKRCNN_DATA names; without it the test is skipped."""
    folder = os.environ.get("MASKRCNN_DATA")
    if not folder:
        pytest.skip("needs real data: set MASKRCNN_DATA to its folder")
    root = Path(folder)
    assert root.is_dir(), f"MASKRCNN_DATA={folder} is no folder"
    return root


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """Photographs that come with scikit-image, uint8 [H, W, 3]; sizes differ."""
    from skimage import data

    return {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
    }


@pytest.fixture(scope="session")
def small_model() -> MaskRCNN:
    """Mask R-CNN of four classes with random weights: its detections mean nothing but are many."""
    import torch

    from maskrcnn_scratch.builders.small import small_maskrcnn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small_maskrcnn(num_classes=5, min_size=96, max_size=160).eval()
