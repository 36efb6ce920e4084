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

# What --fast skips: parts of a node id.
SLOW = (
    "tests/parity/test_parity.py::test_modules_stages_and_model",
    "tests/parity/test_parity.py::test_unusual_sizes",
    "tests/parity/test_parity.py::test_other_architectures",
    "tests/parity/test_parity.py::test_losses_gradients_and_steps",
    "tests/parity/test_losses_on_real_images.py",
    "tests/export/test_compile.py::test_whole_model",
    "tests/export/test_compile.py::test_losses_and_gradients",
    "tests/export/test_onnx.py::test_metadata",
    "tests/export/test_onnx.py::test_sizes",
    "tests/export/test_onnx.py::test_no_detections",
    "tests/export/test_onnx.py::test_example_without_pytorch",
    "tests/export/test_errors.py::test_compiled_package_that_would_be_wrong",
    "tests/export/test_errors.py::test_component_whose_op_has_no_translation",
    "tests/weights/test_loading.py::test_another_file_of_the_published_name",
    "tests/export/test_program.py::test_package_runs_from_cpp",
    "tests/export/test_program.py::test_program_in_a_fresh_process",
    "tests/inspect/test_report.py::test_300_detections",
    "tests/component_check/test_own_parts.py::test_loss_falls",
    "tests/export/test_onnx.py::test_deformable",
    "tests/inference/test_winograd.py::test_optimized_model_compiles",
    "tests/fuzz/test_fuzz.py::test_damaged",
    "tests/faults/test_faults.py::test_full_disk",
    "tests/faults/test_faults.py::test_a_data_worker",
    "tests/faults/test_faults.py::test_a_process",
    "tests/faults/test_kills.py",
    "tests/inference/test_optimize.py::test_batch_norm",
    "tests/component_check/test_broken_parts.py::test_a_loss",
    "tests/inspect/test_report.py",
    "tests/training/test_distributed.py::test_two_processes",
    "tests/training/test_distributed.py::test_gradients",
    "tests/training/test_distributed.py::test_a_bad_image",
    "tests/test_packaging.py::test_archive",
    "tests/ops/test_conv3x3.py::test_instruction_sets",
    "tests/inference/test_winograd.py::test_optimized",
    "tests/builders/test_untrusted_checkpoints.py::test_a_model",
    "tests/data/test_untrusted.py::test_items",
    "tests/export/test_onnx.py::test_preprocessed",
    "tests/export/test_program.py::test_sizes",
    "tests/test_readme.py::test_example_runs",
    "tests/cli/test_train.py::test_killed_and_resumed",
    "test_compiled_model_finds_the_same",
    "test_torchrun_ends_when_a_process_dies",
    "tests/parity/test_parity.py::test_a_divergence_is_named",
    "tests/parity/test_parity.py::test_trained_weights",
    "tests/parity/test_parity.py::test_differences_that_features",
    "tests/inference/test_optimize.py::test_folded_model",
    "tests/export/test_errors.py::test_command",
    "tests/export/test_compile.py::test_padded_batch",
    "tests/weights/test_detectron2.py::test_a_file_gives",
    "tests/model/test_stages.py::test_integer_boxes",
    "tests/cuda/",
    "tests/inference/test_winograd.py::test_generated_code",
    "tests/inference/test_optimize.py::test_networks_in",
    "tests/inference/test_optimize.py::test_autocast",
    "tests/inference/test_optimize.py::test_predictor",
    "tests/inference/test_fork.py::test_a_forked_child",
    "tests/export/test_verification.py::test_file_that",
    "tests/export/test_compile.py::test_ten_images",
    "tests/parity/test_parity.py::test_a_divergence_of_pasting",
    "tests/weights/test_loading.py::test_published_file_is",
    "tests/weights/test_loading.py::test_files_as",
    "tests/weights/test_loading.py::test_in_channels",
    "tests/weights/test_loading.py::test_epsilon",
    "tests/weights/test_detectron2.py::test_detections_differ",
    "tests/cli/test_weights.py::test_convert_names",
    "tests/cli/test_train.py::test_faster_rcnn",
    "tests/cli/test_train_data.py::test_damaged",
    "tests/model/test_stages.py::test_torchvisions_sampler",
    "tests/model/test_imports.py::test_the_model_runs",
    "tests/model/test_imports.py::test_predict_does",
    "tests/ops/test_library.py::test_instruction_sets",
    "tests/ops/test_library.py::test_runs_without",
    "tests/ops/test_paste_masks_packed.py::test_rle_of",
    "tests/test_pipeline_benchmark.py",
    "tests/builders/test_from_config.py::test_published",
    "tests/builders/test_untrusted_checkpoints.py::test_odd",
    "tests/inspect/test_command.py::test_several_images",
)

# With all of their parameters, which are what different modules do.
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
    """``FIRST``. With ``--fast`` one set of parameters of each test that is not ``SLOW``."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if not config.getoption("--fast"):
        return
    seen: set[str] = set()
    kept = []
    for item in items:
        function = item.nodeid.partition("[")[0]
        is_new = function not in seen or function in WHOLE
        if is_new and not any(part in function for part in SLOW):
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
